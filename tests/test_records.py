"""Records on a disk that is full for a while."""

import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stem_torchrec.records import METRICS, Recorder, defined


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
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # TensorBoard's thread ends
    records = [{"kind": "train", "step": step, "qps": 1.0} for step in range(1, 6)]
    with Recorder(tmp_path, active=True) as recorder:
        recorder.write(records[0])
        recorder.upload()
        with room_of((tmp_path / METRICS).stat().st_size + 7):
            recorder.write(records[1])
            recorder.write(records[2])
            with pytest.raises(OSError, match="File too large"):
                recorder.upload()
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


def test_what_json_does_not_have_is_none() -> None:
    figures = {"a": float("nan"), "b": {"c": float("inf"), "d": 1.5}, "e": 3, "f": None}
    assert defined(figures) == {"a": None, "b": {"c": None, "d": 1.5}, "e": 3, "f": None}
