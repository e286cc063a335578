"""A checkpoint of two ranks goes on where it stopped, on other ranks and under another plan."""

import numpy as np
import pytest

from stem_torchrec import checkpoint
from stem_torchrec.config import CheckpointConfig
from stem_torchrec.errors import UserError
from tests.support.steps import (
    Values,
    assert_close,
    batch_of,
    config_of,
    join_rows,
    load_checkpoint,
    parts_of,
    random_rows,
    run_steps,
    start,
    state_of,
)

NUMBERS = ("step", "samples", "skipped", "epoch", "step_in_epoch", "world_size", "batch_size")
POSITION = dict.fromkeys(NUMBERS, 3) | {
    "intervals": [[0, 7], [9, 12]],
    "order": "a",
    "files": "b",
}
TABLE_RATE = {"sgd": 5.0, "adagrad": 0.2, "rowwise_adagrad": 0.2, "adam": 0.02}
EPSILON = 1e-4


def rows_of_steps():
    generator = np.random.default_rng(11)
    return [[random_rows(generator, 8) for _ in range(2)] for _ in range(6)]


def batches(ranks, steps):
    if ranks.world_size == 1:
        return [batch_of(join_rows(parts)) for parts in steps]
    return [batch_of(parts[ranks.rank]) for parts in steps]


def save(folder, step, state, ranks, **settings):
    """Write a checkpoint and wait for it; a failure raises."""
    config = CheckpointConfig(**{"on_error": "stop", "asynchronous": False} | settings)
    saver = checkpoint.Saver(config, folder, ranks)
    saver.save(checkpoint.Content(step, state, b"", {}))
    saver.wait()
    saver.close()


def train_save_train(ranks, config, folder):
    """Three steps, a checkpoint, three more; the states after each three."""
    session = start(config, ranks)
    run_steps(session, batches(ranks, rows_of_steps()[:3]))
    halfway = state_of(session)
    state = checkpoint.state_of(parts_of(session, POSITION))
    save(folder, 3, state, ranks)
    run_steps(session, batches(ranks, rows_of_steps()[3:]))
    return halfway, state_of(session)


def load_train(ranks, config, folder):
    """A fresh model that loads and makes the last three steps; its states and the position."""
    session = start(config, ranks)
    position = load_checkpoint(folder / "step_3", session, ranks, **POSITION)
    halfway = state_of(session)
    run_steps(session, batches(ranks, rows_of_steps()[3:]))
    return halfway, state_of(session), position


def load_for_evaluation(ranks, config, folder):
    session = start(config, ranks)
    checkpoint.load(folder / "step_3", {"model": session.model}, ranks)
    return state_of(session)


def config_with(folder, sharding, tables, *, dense="adam", seed=3, **model):
    return config_of(
        folder,
        run={"dir": "unused", "seed": seed},
        model=model,
        embedding={"optimizer": tables, "lr": TABLE_RATE[tables], "eps": EPSILON},
        optim={"optimizer": dense, "lr": 0.005, "eps": EPSILON},
        distributed={"sharding": sharding},
    )


def assert_same(one, other, tolerance):
    assert_close(one.tables, other.tables, tolerance)
    assert_close(one.dense, other.dense, tolerance)


@pytest.mark.parametrize(
    ("tables", "sharding"),
    [
        ("rowwise_adagrad", "row_wise"),
        ("rowwise_adagrad", "data_parallel"),
        ("adagrad", "row_wise"),
        ("adagrad", "column_wise"),
        ("adagrad", "table_wise"),
        ("adagrad", "data_parallel"),
        ("sgd", "table_row_wise"),
        ("adam", "table_wise"),
        ("adam", "row_wise"),
        ("adam", "column_wise"),
        ("adam", "data_parallel"),
    ],
)
def test_two_ranks_go_on_as_one(tmp_path, pair, alone, tables, sharding):
    config = config_with(tmp_path, sharding, tables)
    halfway, end = pair.run(train_save_train, config, tmp_path / "saved")[0]

    # Another seed: what is not loaded is not there by chance.
    to = "data_parallel" if sharding == "data_parallel" else "table_wise"
    other = config_with(tmp_path, to, tables, seed=4)
    loaded, loaded_end, position = load_train(alone, other, tmp_path / "saved")
    assert position == POSITION
    assert_same(loaded, halfway, 0.0)
    assert_same(loaded_end, end, 1e-5)


@pytest.mark.parametrize(
    ("tables", "sharding"),
    [
        ("adagrad", "table_wise"),
        ("adagrad", "row_wise"),
        ("adam", "table_wise"),
        ("adam", "row_wise"),
        ("adam", "column_wise"),
    ],
)
def test_one_rank_goes_on_as_two(tmp_path, pair, alone, tables, sharding):
    config = config_with(tmp_path, "table_wise", tables)
    halfway, end = train_save_train(alone, config, tmp_path / "saved")
    other = config_with(tmp_path, sharding, tables, seed=4)
    loaded, loaded_end, position = pair.run(load_train, other, tmp_path / "saved")[0]
    assert position == POSITION
    assert_same(loaded, halfway, 0.0)
    assert_same(loaded_end, end, 1e-5)


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "column_wise", "data_parallel"])
def test_evaluation_reads_the_model_under_any_plan(tmp_path, pair, alone, sharding):
    saved = config_with(tmp_path, "row_wise", "rowwise_adagrad")
    halfway, _ = pair.run(train_save_train, saved, tmp_path / "saved")[0]
    other = config_with(tmp_path, sharding, "rowwise_adagrad", seed=4)
    assert_same(load_for_evaluation(alone, other, tmp_path / "saved"), halfway, 0.0)
    assert_same(pair.run(load_for_evaluation, other, tmp_path / "saved")[0], halfway, 0.0)


@pytest.mark.parametrize("dense", ["adam", "adamw", "adagrad", "sgd"])
@pytest.mark.parametrize("model", [{}, {"num_shared_experts": 0}, {"num_task_experts": 0}], ids=str)
def test_dense_optimizers_go_on(tmp_path, alone, dense, model):
    config = config_with(tmp_path, "table_wise", "adagrad", dense=dense, **model)
    config = config.model_copy(
        update={"optim": config.optim.model_copy(update={"weight_decay": 0.1, "clip_norm": 0.1})}
    )
    _, end = train_save_train(alone, config, tmp_path / "saved")
    _, loaded_end, _ = load_train(alone, config, tmp_path / "saved")
    assert_same(loaded_end, end, 1e-6)


def test_only_the_newest_checkpoints_stay(tmp_path, alone):
    session = start(config_with(tmp_path, "table_wise", "sgd"), alone)
    folder = tmp_path / "run" / checkpoint.FOLDER
    for step in (9, 10, 100):
        state = checkpoint.state_of(parts_of(session, POSITION))
        save(folder, step, state, alone)
    (folder / "step_200.partial").mkdir()
    assert checkpoint.saved_steps(folder) == [10, 100]
    assert checkpoint.newest(tmp_path / "run") == folder / "step_100"


def test_saving_a_step_again_replaces_it(tmp_path, alone):
    session = start(config_with(tmp_path, "table_wise", "sgd"), alone)
    for step in (1, 2):
        state = checkpoint.state_of({"model": session.model, "position": Values(step=step)})
        save(tmp_path / "saved", 5, state, alone)
    saved = checkpoint.SavedStep()
    checkpoint.load(tmp_path / "saved" / "step_5", {"position": saved}, alone)
    assert saved.step == 2


def test_a_run_without_checkpoints_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="no checkpoint under"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize("tables", ["adagrad", "adam"])
@pytest.mark.parametrize("to", ["column_wise", "table_wise"])
def test_column_shards_of_one_rank(tmp_path, alone, tables, to):
    saved = config_with(tmp_path, "column_wise", tables)
    halfway, end = train_save_train(alone, saved, tmp_path / "saved")
    other = config_with(tmp_path, to, tables, seed=4)
    loaded, loaded_end, _ = load_train(alone, other, tmp_path / "saved")
    assert_same(loaded, halfway, 0.0)
    assert_same(loaded_end, end, 1e-5)
