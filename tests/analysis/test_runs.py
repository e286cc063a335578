"""Reading finished runs: order of rows, tables, groups, what must fit together."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from stem_torchrec import checkpoint
from stem_torchrec.analysis.runs import (
    Model,
    Run,
    by_model,
    check_same_samples,
    check_same_tasks,
    read_runs,
    sample_ids,
    task_columns,
)
from stem_torchrec.analysis.single_task import check_single, single_of, single_predictions
from stem_torchrec.analysis.spread import Spread, signed
from stem_torchrec.cli.workers import predict_worker, tables_worker
from stem_torchrec.distributed.tables import TableShard, whole_tables
from stem_torchrec.errors import UserError
from stem_torchrec.training.evaluation import Joined
from tests.checkpoint.saved_runs import whole_state

TASKS = ("click", "like")


@pytest.fixture(scope="module")
def runs(finished: Path) -> dict[str, Run]:
    names = ("click", "like", "both", "both_1", "plain")
    return {name: read_runs("--runs", [finished / name])[0] for name in names}


def changed(like: Run, path: str, /, **sections: dict[str, Any]) -> Run:
    """A run like another, with other keys."""
    parts = {
        name: getattr(like.config, name).model_copy(update=keys) for name, keys in sections.items()
    }
    return replace(like, path=Path(path), config=like.config.model_copy(update=parts))


def refused(message: pytest.ExceptionInfo[UserError], *parts: object) -> None:
    assert [part for part in parts if str(part) not in str(message.value)] == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_predictions_and_ids_are_in_file_order(runs: dict[str, Run], split: str) -> None:
    run = runs["both"]
    stored = pq.read_table(run.config.data.path / split)
    joined = predict_worker(run.config, split)
    for index, task in enumerate(TASKS):
        assert joined.labels[:, index].tolist() == stored[task].to_pylist()
    ids = sample_ids(run, split, ["item_id", "user_id"])
    assert ids["user_id"].tolist() == stored["user_id"].to_pylist()
    assert ids["item_id"].tolist() == stored["item_id"].to_pylist()
    assert not dist.is_initialized()


def test_tables_are_those_of_the_checkpoint(runs: dict[str, Run]) -> None:
    run = runs["both"]
    features = [f for f in run.schema.features if f.name in ("user_id", "item_id")]
    tables = tables_worker(run.config, features)
    assert not dist.is_initialized()
    stored = whole_state(checkpoint.newest(run.path))["model"]
    assert list(tables) == ["shared", *TASKS]
    for owner, of_owner in tables.items():
        assert set(of_owner) == {"user_id", "item_id"}
        for name, table in of_owner.items():
            expected = next(v for k, v in stored.items() if f".{owner}__{name}." in k)
            assert np.array_equal(table, expected.numpy())
    assert not np.array_equal(tables["click"]["user_id"], tables["like"]["user_id"])


def test_tables_a_task_lacks_are_left_out(runs: dict[str, Run]) -> None:
    tables = tables_worker(runs["plain"].config, [runs["plain"].schema.sparse[0]])
    assert list(tables) == ["shared"]


def test_features_with_a_common_table_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace as Space

    from stem_torchrec.data.schema import Feature
    from stem_torchrec.training import finished_run

    owners = {"shared": ("a", "b"), "click": ("b",)}
    session = Space(model=None, recommender=Space(model=Space(owners=owners)))
    arrays = {"shared__a": np.zeros((2, 1)), "click__a": np.ones((2, 1))}
    monkeypatch.setattr(finished_run, "open_run", lambda *_: (session, 0))
    monkeypatch.setattr(
        finished_run, "whole_tables", lambda _, names: {n: arrays[n] for n in names}
    )
    features = [
        Feature(name="a", kind="id", num_embeddings=2),
        Feature(name="b", kind="id", num_embeddings=2, table="a"),
    ]
    found = finished_run.tables_of_run(None, Space(world_size=1), features)  # type: ignore[arg-type]
    assert found["shared"]["a"] is found["shared"]["b"] is arrays["shared__a"]
    assert found["click"] == {"b": arrays["click__a"]}


def test_whole_tables_put_shards_in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.arange(12.0).view(4, 3)
    pieces = [
        TableShard("a__x", whole[:, 1:].half(), 0, 1, 3),
        TableShard("other", whole, 0, 0, 3),
        TableShard("a__x", whole[2:, :1], 2, 0, 3),
        TableShard("a__x", whole[:2, :1], 0, 0, 3),
    ]
    monkeypatch.setattr("stem_torchrec.distributed.tables.local_shards", lambda _: pieces)
    found = whole_tables(torch.nn.Identity(), {"a__x"})
    assert list(found) == ["a__x"]
    assert found["a__x"].dtype == np.float32
    assert found["a__x"].tolist() == whole.tolist()


def test_seeds_are_grouped_and_settings_told_apart(runs: dict[str, Run]) -> None:
    given = [runs["both_1"], runs["plain"], runs["both"]]
    models = by_model(given)
    assert [model.name for model in models] == [
        "stem_net model.task_specific_features=all",
        "stem_net model.task_specific_features=none",
    ]
    assert models[0].runs == (runs["both"], runs["both_1"])
    balanced = changed(runs["both"], "balanced", balance={"rule": "pcgrad"})
    faster = changed(runs["both_1"], "faster", optim={"lr": 0.5})
    assert [len(model.runs) for model in by_model([runs["both"], faster])] == [1, 1]
    elsewhere = changed(
        runs["both_1"], "elsewhere", eval={"batch_size": 7}, distributed={"sharding": "row_wise"}
    )
    found = by_model([runs["both"], balanced, elsewhere])
    assert found == [
        Model("stem_net", (runs["both"], elsewhere)),
        Model("stem_net + pcgrad", (balanced,)),
    ]


def test_the_same_run_twice(runs: dict[str, Run], finished: Path) -> None:
    copy = changed(runs["both"], "a/copy")
    with pytest.raises(UserError) as error:
        by_model([runs["both"], runs["plain"], copy])
    refused(error, "--runs", runs["both"].path, "a/copy", "run.seed 0")
    with pytest.raises(UserError, match=r"--runs: .*is given twice"):
        read_runs("--runs", [finished / "both", finished / "data" / ".." / "both"])


def test_a_run_without_its_last_checkpoint_is_refused(finished: Path, tmp_path: Path) -> None:
    """An older one has other weights than the run's figures tell of."""
    shutil.copytree(finished / "both", tmp_path / "run")
    (last,) = (tmp_path / "run" / "checkpoints").iterdir()
    last.rename(last.with_name("step_1"))
    with pytest.raises(UserError, match=r"--runs: .*run: no checkpoint of step .*of step 1"):
        read_runs("--runs", [tmp_path / "run"])


def test_single_runs_are_matched_by_task_and_seed(runs: dict[str, Run]) -> None:
    click_1 = changed(runs["click"], "click_1", run={"seed": 1})
    like = runs["like"]
    given = [like, runs["click"], click_1]
    check_single(given, TASKS)
    assert single_of(given, TASKS, 0) == (runs["click"], like)
    assert single_of(given, TASKS, 1) == (click_1, like)
    assert single_of([like, click_1], TASKS, 5) == (click_1, like)
    with pytest.raises(UserError) as error:
        single_of(given, TASKS, 2)
    refused(error, "--single", "'click'", "run.seed 2", "found 0, 1")


def test_a_single_task_model_serves_all_its_tasks(runs: dict[str, Run]) -> None:
    both = changed(runs["both"], "single", model={"name": "single_task"})
    check_single([both], TASKS)
    assert single_of([both], TASKS, 3) == (both, both)


def test_bad_single_runs(runs: dict[str, Run]) -> None:
    with pytest.raises(UserError) as error:
        check_single([runs["both"]], TASKS)
    refused(error, "--single", runs["both"].path, "'stem_net'", "click, like", "single_task")
    with pytest.raises(UserError) as error:
        check_single([runs["click"]], TASKS)
    refused(error, "--single", "'like'", "their tasks are click")
    with pytest.raises(UserError) as error:
        check_single([runs["click"], changed(runs["click"], "again")], ("click",))
    refused(error, "--single", runs["click"].path, "again", "'click'", "run.seed 0")


def test_columns_follow_the_tasks_names(runs: dict[str, Run]) -> None:
    ones = np.ones((2, 3))
    joined = Joined(ones * [1, 2, 3], ones * [4, 5, 6], ones * [7, 8, 9], None)
    found = task_columns(joined, ("a", "b", "c"), ("c", "a"))
    assert [part[0].tolist() for part in found[:3]] == [[3, 1], [6, 4], [9, 7]]

    def one(value: float) -> Joined:
        return Joined(*(np.full((2, 1), value + part) for part in (0, 0.1, 0.2)), None)

    predictions = {runs["click"].path: one(1), runs["like"].path: one(2)}
    single = single_predictions((runs["like"], runs["click"]), predictions, ("like", "click"))
    assert [part[1].tolist() for part in single[:3]] == [[2, 1], [2.1, 1.1], [2.2, 1.2]]


def test_other_data_features_or_tasks(runs: dict[str, Run], finished: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(finished / "data")
    check_same_samples([runs["both"], changed(runs["plain"], "p", data={"path": link})], "test")
    (other := tmp_path / "other").mkdir()
    with pytest.raises(UserError) as error:
        check_same_samples(
            [runs["both"], changed(runs["plain"], "p", data={"path": other})], "test"
        )
    refused(
        error, "p: data.path", other.resolve(), runs["both"].path, (finished / "data").resolve()
    )

    few = runs["both"].schema.select(features=["user_id", "item_id"])
    with pytest.raises(UserError) as error:
        check_same_samples([runs["both"], replace(runs["plain"], schema=few)], "test")
    refused(error, runs["plain"].path, "data.features is user_id, item_id,", runs["both"].path)

    check_same_tasks([runs["both"], runs["plain"]], ("like", "click"))
    with pytest.raises(UserError) as error:
        check_same_tasks([runs["both"]], ("click", "buy"))
    refused(error, "--tasks", "'buy'", runs["both"].path, "click, like")
    with pytest.raises(UserError) as error:
        check_same_tasks([runs["both"], runs["click"]], ("click",))
    refused(error, runs["click"].path, "tasks.names is click", runs["both"].path, "click, like")


def test_spread() -> None:
    assert Spread((1.0, None, 3.0)).mean == 2
    assert Spread((1.0, None, 3.0)).std == pytest.approx(2**0.5)
    assert Spread((1.0, 3.0)).text(signed) == "+2.0000 ± 1.4142"
    assert Spread((-0.5,)).text() == "-0.5000"
    assert Spread((None,)).text() == "-"
    assert Spread((None, 1.0)).record() == {"mean": 1.0, "std": None, "values": [None, 1.0]}
