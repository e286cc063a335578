"""A run that goes on with another one's training, on data that extends its own."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stem_torchrec import checkpoint
from stem_torchrec.checkpoint import Initial
from stem_torchrec.config import CheckpointConfig, Config
from stem_torchrec.config.reading import load_config
from stem_torchrec.distributed.tables import whole_tables
from stem_torchrec.errors import UserError
from stem_torchrec.runs.schema import schema_of_new
from stem_torchrec.training.job import train
from stem_torchrec.training.replay import replay_of
from stem_torchrec.training.session import build
from tests.checkpoint.saved_runs import whole_state
from tests.distributed.processes import Processes
from tests.support.prepared import small_config, small_data

OPTIONS = [
    *("--data.shuffle=false", "--balance.rule=multi_balance", "--balance.gram_every=2"),
    *("--optim.warmup_steps=5", "--optim.decay=cosine", "--optim.decay_steps=20"),
    *("--checkpoint.keep=9", "--train.log_every=1"),
]
USER = "click__user_id"
TABLE = "recommender.embeddings.tables.embedding_bags.{}.weight"


def config_of(folder: Path, name: str, *options: str, data: str = "data") -> Config:
    path = small_config(folder / f"{name}.yaml", folder / data, folder / name)
    return load_config(path, [*OPTIONS, *options])


def replay(ranks: Any, config: Config, days: str | None, initial: Initial | None = None) -> None:
    settled, replayed, _ = replay_of(config, days)
    train(
        settled,
        ranks,
        existing="refuse",
        listener=lambda _: None,
        initial=initial,
        replayed=replayed,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven days of two steps each on two ranks; and a folder with 7 more users."""
    folder = tmp_path_factory.mktemp("continued")
    small_data(folder / "data", world="drift", days=7, train_rows=2103)
    grown = shutil.copytree(folder / "data", folder / "grown") / "schema.json"
    content = json.loads(grown.read_text())
    (user,) = (f for f in content["features"] if f["name"] == "user_id")
    user["num_embeddings"] += 7
    grown.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, pair: Processes) -> Path:
    pair.run(replay, config_of(folder, "whole"), None)
    return folder / "whole"


def test_days_in_a_run_of_their_own_are_the_days_of_one_run(
    folder: Path, whole: Path, pair: Processes
) -> None:
    """Weights, optimizers, balancing and learning rates, to the bit; new rows change nothing."""
    initial = Initial(whole, checkpoint=6, continues=True)
    pair.run(replay, config_of(folder, "rest", data="grown"), "2024-01-04:2024-01-07", initial)
    left, right = (
        whole_state(run / "checkpoints" / step)
        for run, step in ((folder / "rest", "step_8"), (whole, "step_14"))
    )
    names = set(flat(right)) - {name for name in flat(right) if name[0] == "position"}
    assert any("fork" in part for name in names for part in name)
    for name in names:
        here, there = flat(left)[name], flat(right)[name]
        if isinstance(there, torch.Tensor) and there.dim() and USER.split("__")[1] in str(name):
            here = here[: len(there)]
        assert torch.equal(here, there) if isinstance(there, torch.Tensor) else here == there, name
    days = [
        {record["day"]: record["ne"] for record in records(run) if record["kind"] == "day"}
        for run in (folder / "rest", whole)
    ]
    assert days[0] == {day: ne for day, ne in days[1].items() if day > "2024-01-03"}
    rates = [
        [r["lr"] for r in records(run) if r["kind"] == "train"] for run in (folder / "rest", whole)
    ]
    assert rates[0] == rates[1][6:]
    report = json.loads((folder / "rest" / "init.json").read_text())
    assert (report["steps_before"], report["balance"]) == (6, "loaded")
    assert report["optimizers"]["initial"] == {}
    assert report["new_rows"][TABLE.format(USER)] == 7


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def flat(state: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    def walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        if isinstance(value, dict):
            for name, part in value.items():
                yield from walk(part, (*path, str(name)))
        else:
            yield path, value

    return dict(walk(state, ()))


def take(ranks: Any, config: Config, initial: Initial) -> dict[str, Any]:
    """What a run starts with, saved as step 1; the report."""
    session = build(config, ranks, schema_of_new(config, initial, ranks))
    report, _ = checkpoint.load_continued(
        session.model, session.optimizers, config, session.schema, initial, ranks
    )
    parts = {"model": session.model, "optimizers": session.optimizers}
    saver = checkpoint.Saver(CheckpointConfig(), config.run.dir, ranks)
    saver.save(checkpoint.Content(1, checkpoint.state_of(parts), b"", {}))
    saver.wait()
    saver.close()
    return report


def fresh(ranks: Any, config: Config, table: str) -> torch.Tensor:
    """A table of a first day."""
    return torch.from_numpy(whole_tables(build(config, ranks).model, [table])[table])


def learn(ranks: Any, config: Config) -> None:
    train(config, ranks, existing="refuse", listener=lambda _: None)


@pytest.mark.parametrize(
    ("optimizer", "sharding", "layout"),
    [
        ("rowwise_adagrad", "row_wise", "separate"),
        ("adagrad", "table_wise", "fused"),
        ("adam", "data_parallel", "separate"),
    ],
)
def test_new_rows_and_a_new_task_start_as_on_a_first_day(
    folder: Path, alone: Any, pair: Processes, optimizer: str, sharding: str, layout: str
) -> None:
    tables = [f"--embedding.optimizer={optimizer}", f"--distributed.sharding={sharding}"]
    one = config_of(
        folder, f"one-{optimizer}", *tables, "--tasks.names=[click]", "--train.max_steps=4"
    )
    pair.run(learn, one)
    here = config_of(
        folder, f"two-{optimizer}", *tables, f"--embedding.layout={layout}", data="grown"
    )
    report = pair.run(take, here, Initial(one.run.dir, continues=True))[0]
    old = whole_state(one.run.dir / "checkpoints" / "step_4")
    new = whole_state(here.run.dir / "step_1")
    for table, origin in ((USER, USER), ("like__user_id", "shared__user_id")):
        weight = new["model"][TABLE.format(table)]
        assert torch.equal(weight[:51], old["model"][TABLE.format(origin)])
        assert torch.equal(weight[51:], fresh(alone, here, table)[51:])
    kept_old, kept_new = (
        {
            name[-1].split(".")[-1]: value
            for name, value in flat(state["optimizers"]).items()
            if USER in "".join(name) and isinstance(value, torch.Tensor) and value.dim()
        }
        for state in (old, new)
    )
    assert kept_old
    for name, value in kept_old.items():
        assert value.abs().sum() > 0
        assert torch.equal(kept_new[name][:51], value), name
        assert kept_new[name][51:].abs().sum() == 0
    anew = report["optimizers"]["initial"]
    assert "new task" in anew[TABLE.format("like__user_id")]
    assert TABLE.format(USER) not in anew
    assert report["balance"] == "other tasks"
    moment = [
        [
            v
            for n, v in flat(state["optimizers"]).items()
            if n[-1] == "exp_avg" and "task_experts.hidden.0.weight" in "".join(n)
        ]
        for state in (old, new)
    ]
    assert torch.equal(moment[1][0][:1], moment[0][0])
    assert moment[1][0][1:].abs().sum() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.features=[user_id, item_id]"], "does not extend the data of .*: no feature"),
        (["--tasks.names=[click]"], "task 'like' of .* is not trained here"),
        (["--model.tower_widths=[4]"], r"model\.tower_widths is \(?\[?4"),
        (["--embedding.dim=8"], "has dimension 8"),
    ],
)
def test_what_is_no_extension(
    folder: Path, whole: Path, alone: Any, options: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        take(alone, config_of(folder, "no", *options), Initial(whole, continues=True))
    assert not (folder / "no").exists()


def test_a_table_that_shrank(folder: Path, alone: Any, pair: Processes) -> None:
    config = config_of(folder, "large", "--train.max_steps=1", data="grown")
    pair.run(learn, config)
    with pytest.raises(UserError, match=r"'user_id' has num_embeddings 51, .* has 58"):
        take(alone, config_of(folder, "no"), Initial(folder / "large", continues=True))
