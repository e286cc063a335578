"""Samples per second, by a clock that the test moves."""

import pytest
import torch

from stem_torchrec.training.throughput import Throughput


class Clock:
    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("stem_torchrec.training.throughput.time", clock)
    return clock


def test_steps_over_time(clock):
    throughput = Throughput(torch.device("cpu"), warmup_steps=0)
    for samples, seconds in ((100, 2.0), (50, 1.0)):
        clock.now += seconds
        throughput.count(samples)
    assert throughput.total() == pytest.approx(150 / 3)


def test_warm_up_is_left_out(clock):
    throughput = Throughput(torch.device("cpu"), warmup_steps=2)
    for _ in range(2):
        clock.now += 60
        throughput.count(7)
        assert throughput.lap() is None
        assert throughput.total() is None
    throughput.pause()
    clock.now += 60
    throughput.resume()
    clock.now += 2
    throughput.count(100)
    assert throughput.lap() == pytest.approx(50)
    assert throughput.total() == pytest.approx(50)


def test_pauses_are_left_out(clock):
    throughput = Throughput(torch.device("cpu"), warmup_steps=0)
    clock.now += 1
    throughput.count(10)
    throughput.pause()
    clock.now += 500
    throughput.resume()
    clock.now += 1
    throughput.count(30)
    assert throughput.total() == pytest.approx(20)


def test_a_pause_during_warm_up_does_not_start_the_clock(clock):
    throughput = Throughput(torch.device("cpu"), warmup_steps=2)
    throughput.count(1)
    throughput.pause()
    clock.now += 100
    throughput.resume()
    clock.now += 100
    assert throughput.total() is None
    throughput.count(1)
    clock.now += 4
    throughput.count(8)
    assert throughput.total() == pytest.approx(2)


def test_laps_start_over_and_the_total_goes_on(clock):
    throughput = Throughput(torch.device("cpu"), warmup_steps=0)
    clock.now += 1
    throughput.count(10)
    assert throughput.lap() == pytest.approx(10)
    assert throughput.lap() is None
    clock.now += 1
    throughput.count(30)
    assert throughput.lap() == pytest.approx(30)
    assert throughput.total() == pytest.approx(20)
