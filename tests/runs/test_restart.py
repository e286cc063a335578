"""What a worker that is started again does with the run folder."""

import json
from pathlib import Path

import pytest
from torch.distributed import HashStore

from stem_torchrec.runs.folder import Existing, clear_run
from stem_torchrec.runs.restart import existing_after_restart, mark
from stem_torchrec.storage.lock.holder import JOB_NAME, share_job_name

EXISTING: tuple[Existing, ...] = ("refuse", "resume", "overwrite")


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this job's run, before its first checkpoint."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this")
    monkeypatch.delenv(JOB_NAME, raising=False)
    clear_run(tmp_path / "run", "refuse")
    mark(tmp_path / "run")
    return tmp_path / "run"


def save(run_dir: Path, name: str) -> Path:
    path = run_dir / "checkpoints" / name
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("existing", ["refuse", "overwrite"])
def test_without_a_checkpoint_it_starts_anew(run_dir: Path, existing: Existing) -> None:
    assert existing_after_restart(run_dir, existing) == "overwrite"
    save(run_dir, "step_4.partial")
    assert existing_after_restart(run_dir, existing) == "overwrite"
    assert existing_after_restart(run_dir, "resume") == "resume"


@pytest.mark.parametrize("name", ["step_4", "step_4.replaced"])
@pytest.mark.parametrize("existing", EXISTING)
def test_checkpoints_are_never_deleted_even_damaged_ones(
    run_dir: Path, existing: Existing, name: str
) -> None:
    save(run_dir, name)  # without a manifest
    assert existing_after_restart(run_dir, existing) == "resume"


@pytest.mark.parametrize("existing", EXISTING)
def test_another_jobs_run_stays_another_jobs(
    run_dir: Path, existing: Existing, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run_dir, "step_4")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "other")
    assert existing_after_restart(run_dir, existing) == existing
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert existing_after_restart(run_dir, existing) == existing


def test_a_node_that_comes_back_knows_its_jobs_run(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has another launcher, at the same store."""
    store = HashStore()
    monkeypatch.setenv(JOB_NAME, "before")
    share_job_name(store, "this")
    mark(run_dir)
    save(run_dir, "step_4")
    monkeypatch.setattr("os.getppid", lambda: 1)
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    share_job_name(store, "this")
    assert existing_after_restart(run_dir, "refuse") == "resume"
    for other, run_id in ((store, "another"), (HashStore(), "this")):
        share_job_name(other, run_id)
        assert existing_after_restart(run_dir, "refuse") == "refuse"


def test_a_job_that_dies_as_it_clears_its_folder_knows_it_again(run_dir: Path) -> None:
    save(run_dir, "step_4.partial")
    (run_dir / "config.yaml").touch()
    clear_run(run_dir, "overwrite")
    assert [path.name for path in run_dir.iterdir()] == ["job.json"]
    assert existing_after_restart(run_dir, "refuse") == "overwrite"


def test_a_run_that_no_launcher_restarts_has_no_mark(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads((run_dir / "job.json").read_text())["run_id"] == "this"
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS")
    mark(run_dir)
    assert list(run_dir.iterdir()) == []
