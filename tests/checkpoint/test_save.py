"""Saving in the background, and saves that fail."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from stem_torchrec import checkpoint
from stem_torchrec.checkpoint.files import Reader
from stem_torchrec.checkpoint.manifest import read_manifest
from stem_torchrec.config import CheckpointConfig
from stem_torchrec.distributed.tables import local_shards
from stem_torchrec.errors import CheckpointError
from tests.distributed.processes import Processes
from tests.distributed.test_checkpoint import POSITION, batches, config_with, rows_of_steps
from tests.support.steps import assert_close, load_checkpoint, parts_of, run_steps, start, state_of

KINDS = pytest.mark.parametrize("asynchronous", [False, True])
SHARDINGS = ("table_wise", "row_wise", "column_wise", "data_parallel")


def content(session: Any, step: int) -> checkpoint.Content:
    position = POSITION | {"step": step}
    state = checkpoint.state_of(parts_of(session, position))
    return checkpoint.Content(step, state, b"own", {"versions": {}})


def overwrite(session: Any, value: float) -> None:
    with torch.no_grad():
        for shard in local_shards(session.model):
            shard.values.fill_(value)
        for parameter in session.model.parameters():
            if parameter.numel():
                parameter.fill_(value)


def save_and_go_on(ranks: Any, config: Any, folder: Path) -> Any:
    """The states at two saves, whose writing goes on while the model changes."""
    session = start(config, ranks)
    run_steps(session, batches(ranks, rows_of_steps()[:1]))  # optimizers make their state
    saver = checkpoint.Saver(CheckpointConfig(asynchronous=True, on_error="stop"), folder, ranks)
    states = []
    for step in (1, 2):
        overwrite(session, step)
        states.append(state_of(session))
        saver.save(content(session, step))
        overwrite(session, 7.0)
    saver.wait()
    saver.close()
    return states


def load(ranks: Any, config: Any, path: Path) -> Any:
    session = start(config, ranks)
    position = load_checkpoint(path, session, ranks)
    return state_of(session), position["step"]


@pytest.mark.parametrize("tables", ["rowwise_adagrad", "adam"])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_what_is_saved_is_the_state_at_the_call(
    tmp_path: Path, pair: Processes, sharding: str, tables: str
) -> None:
    config = config_with(tmp_path, sharding, tables)
    states = pair.run(save_and_go_on, config, tmp_path / "saved")[0]
    for step, expected in enumerate(states, start=1):
        loaded, saved_step = pair.run(load, config, tmp_path / "saved" / f"step_{step}")[0]
        assert saved_step == step
        assert_close(loaded.tables, expected.tables, 0.0)
        assert_close(loaded.dense, expected.dense, 0.0)


def save_with_one_failing(
    ranks: Any, config: Any, folder: Path, asynchronous: bool, failing: int
) -> list[tuple[int, str]]:
    """Saves of steps 1, 2 and 3; in step 2 one rank may write no more than a few bytes."""
    session = start(config, ranks)
    failed: list[tuple[int, str]] = []
    saver = checkpoint.Saver(
        CheckpointConfig(asynchronous=asynchronous),
        folder,
        ranks,
        lambda step, error: failed.append((step, error)),
    )
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step in (1, 2, 3):
        if step == 2 and ranks.rank == failing:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        saver.save(content(session, step))
        saver.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        if step == 2:
            assert checkpoint.newest_valid(folder.parent, ranks).name == "step_1"
    saver.close()
    return failed


@KINDS
@pytest.mark.parametrize("failing", [0, 1])
def test_a_full_disk_fails_the_save_and_nothing_else(
    tmp_path: Path, pair: Processes, asynchronous: bool, failing: int
) -> None:
    config = config_with(tmp_path, "row_wise", "adagrad")
    folder = tmp_path / checkpoint.FOLDER
    outcomes = pair.run(save_with_one_failing, config, folder, asynchronous, failing)
    assert outcomes[0] == outcomes[1]
    ((step, error),) = outcomes[0]
    assert step == 2
    assert f"rank {failing}: " in error
    assert sorted(path.name for path in folder.iterdir()) == ["step_1", "step_3"]


@KINDS
def test_a_failed_save_may_end_the_run(tmp_path: Path, alone: Any, asynchronous: bool) -> None:
    session = start(config_with(tmp_path, "table_wise", "sgd"), alone)
    (tmp_path / "file").touch()
    config = CheckpointConfig(asynchronous=asynchronous, on_error="stop")
    saver = checkpoint.Saver(config, tmp_path / "file" / "checkpoints", alone)
    with pytest.raises(CheckpointError, match=r"checkpoint.on_error stop: step 4: .*file"):  # noqa: PT012
        saver.save(content(session, 4))
        saver.wait()


def test_the_manifest_tells_where_it_comes_from(tmp_path: Path, alone: Any) -> None:
    session = start(config_with(tmp_path, "table_wise", "sgd"), alone)
    saver = checkpoint.Saver(CheckpointConfig(), tmp_path, alone)
    saver.save(content(session, 4))
    saver.wait()
    saver.close()
    manifest = read_manifest(tmp_path / "step_4")
    assert manifest.about == {"step": 4, "world_size": 1, "versions": {}}
    names = {path.name for path in (tmp_path / "step_4").iterdir()}
    assert names == {file.name for file in manifest.files} | {"manifest.json"}


def test_ctrl_c_in_a_load_is_no_failed_rank(
    tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = start(config_with(tmp_path, "table_wise", "sgd"), alone)
    saver = checkpoint.Saver(CheckpointConfig(on_error="stop"), tmp_path / "saved", alone)
    saver.save(content(session, 4))
    saver.wait()
    saver.close()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Reader, "read_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.load(tmp_path / "saved" / "step_4", {"model": session.model}, alone)
