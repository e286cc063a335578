"""Records on a disk that is full for a while."""

import json
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stem_torchrec.runs.records import METRICS, Recorder, defined


@pytest.fixture
def writers_end() -> Callable[[], None]:
    """Wait until TensorBoard's threads of this test have met the full disk, which ends them."""
    before = set(threading.enumerate())

    def wait() -> None:
        for thread in set(threading.enumerate()) - before:
            thread.join(timeout=60)
            assert not thread.is_alive()

    return wait


@contextmanager
def room_of(size: int) -> Iterator[None]:
    """No file of this process may grow over ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_does_not_take_comes_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, writers_end: Callable[[], None]
) -> None:
    records = [{"kind": "train", "step": step, "qps": 1.0} for step in range(1, 6)]
    with Recorder(tmp_path, active=True) as recorder:
        recorder.write(records[0])
        recorder.upload()
        with room_of((tmp_path / METRICS).stat().st_size + 7):
            recorder.write(records[1])
            recorder.write(records[2])
            with pytest.raises(OSError, match="File too large"):
                recorder.upload()
            writers_end()
        assert "records are not written yet" in caplog.text
        recorder.write(records[3])
        recorder.write(records[4])
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    steps = set()
    for file in (tmp_path / "tb").iterdir():
        events = EventAccumulator(str(file)).Reload()
        if "train/qps" in events.Tags()["scalars"]:
            steps |= {event.step for event in events.Scalars("train/qps")}
    assert {1, 5} <= steps


def test_a_disk_that_is_full_at_the_start_takes_the_records_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, writers_end: Callable[[], None]
) -> None:
    hook = threading.excepthook
    records = [{"kind": "train", "step": step, "qps": 1.0} for step in (1, 2)]
    with room_of(0):
        recorder = Recorder(tmp_path, active=True)
        recorder.write(records[0])
        writers_end()
    with recorder:
        recorder.write(records[1])
    assert recorder.failure is None
    assert [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()] == records
    assert "TensorBoard's records are left out" in caplog.text
    assert threading.excepthook is hook


def test_what_a_disk_never_takes_is_said(tmp_path: Path) -> None:
    with room_of(0), Recorder(tmp_path, active=True) as recorder:
        recorder.write({"kind": "train", "step": 1})
    assert (
        str(recorder.failure) == f"{tmp_path / METRICS}: File too large: the last records are lost"
    )


def test_what_json_does_not_have_is_none() -> None:
    figures = {"a": float("nan"), "b": {"c": float("inf"), "d": 1.5}, "e": 3, "f": None}
    assert defined(figures) == {"a": None, "b": {"c": None, "d": 1.5}, "e": 3, "f": None}
