"""A job is killed, and what it would go on from is damaged."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.faults.events import events
from tests.faults.jobs import Job, Result, differences
from tests.faults.observed import RANKS


def checkpoints(job: Job) -> list[Path]:
    """Newest first."""
    found = [path for path in (job.run_dir / "checkpoints").glob("step_*") if not path.suffix]
    return sorted(found, key=lambda path: -int(path.name.removeprefix("step_")))


def killed_and_damaged(
    folder: Path, data: Path, choose: Callable[[list[Path]], list[Path]]
) -> tuple[Result, list[str]]:
    """The job's result after a kill of all ranks, and the names of the damaged checkpoints."""
    with Job(folder, data, restarts=5) as job:
        place: int | None = 0
        for _ in range(3):
            assert place is not None
            place = job.wait_for("written", after=place)
        processes = [events(folder, rank)[-1].process for rank in range(RANKS)]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        chosen = choose(checkpoints(job))
        for path in chosen:
            content = bytearray((path / "rank_0.pt").read_bytes())
            content[len(content) // 2] ^= 1
            (path / "rank_0.pt").write_bytes(content)
        for process in processes:
            os.kill(process, signal.SIGKILL)
        return job.result(), [path.name for path in chosen]


def test_an_older_one_is_taken(tmp_path: Path, data: Path, expected: Result) -> None:
    result, (name,) = killed_and_damaged(tmp_path, data, lambda paths: paths[:1])
    assert f"checkpoint passed over: {name}: rank_0.pt" in result.log
    assert differences(result, expected) == []


def test_without_a_valid_one_it_ends_and_deletes_nothing(tmp_path: Path, data: Path) -> None:
    result, names = killed_and_damaged(tmp_path, data, lambda paths: paths)
    assert result.code == 1
    assert "no valid checkpoint" in result.log
    assert len(names) >= 2
    for name in names:
        assert f"{name}: rank_0.pt: bytes 0 to" in result.log
        assert (tmp_path / "run" / "checkpoints" / name / "manifest.json").is_file()
    # It was started again once: what is damaged stays damaged.
    assert [event.what for event in events(tmp_path, 0)].count("start") == 2
