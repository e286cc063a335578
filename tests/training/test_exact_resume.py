"""A run that is stopped and resumed is the run that was not, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stem_torchrec import checkpoint
from stem_torchrec.config import Config
from stem_torchrec.config.reading import load_config
from stem_torchrec.runs.folder import Existing
from stem_torchrec.training.job import train
from tests.checkpoint.saved_runs import whole_state
from tests.distributed.processes import Processes
from tests.support.prepared import small_config, small_data

SPEED = {"qps", "qps_total", "peak_memory_bytes", "total_steps"}
# Two ranks make 8 steps an epoch. The window holds two steps.
OPTIONS = {
    "train": {"epochs": 2, "log_every": 3, "ne_window": 512},
    "model": {"dropout": 0.3},
    "balance": {"rule": "multi_balance", "gram_every": 2, "gram_rows": 20},
    "optim": {"warmup_steps": 4, "decay": "cosine", "decay_steps": 16, "clip_norm": 1.0},
    "eval": {"every": 100},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    small_data(folder / "data")
    return folder


def config_of(folder: Path, name: str, **sections: dict[str, Any]) -> Config:
    path = small_config(folder / f"{name}.yaml", folder / "data", folder / name)
    options = [
        f"--{section}.{key}={value}"
        for part in (OPTIONS, sections)
        for section, keys in part.items()
        for key, value in keys.items()
    ]
    return load_config(path, options)


def train_on(ranks: Any, config: Config, existing: Existing) -> None:
    torch.rand(3)  # the generators' states at the start are not what makes runs equal
    train(config, ranks, existing=existing, listener=lambda record: None)


def records(run_dir: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Records by kind and step, without what is speed; eval records of ends in between left out."""
    found = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        key = record.get("split", record["kind"]), record["step"]
        assert key not in found, f"{key} comes twice"
        found[key] = {name: value for name, value in record.items() if name not in SPEED}
    return found


def saved(run_dir: Path) -> dict[str, Any]:
    """Everything in the newest checkpoint, flat."""
    folder = checkpoint.newest(run_dir)
    own = [torch.load(path) for path in sorted(folder.glob("rank_*.pt"))]
    return flat({"common": whole_state(folder), "own": own})


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        return {path: value}
    return {k: v for name, part in parts for k, v in flat(part, f"{path}/{name}").items()}


def assert_equal(one: Path, other: Path) -> None:
    ours, theirs = records(one), records(other)
    assert theirs.keys() <= ours.keys()
    for key, record in theirs.items():
        assert ours[key] == record, key
    left, right = saved(one), saved(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        same = torch.equal(value, right[name]) if torch.is_tensor(value) else value == right[name]
        assert same, name


@pytest.fixture(scope="module")
def whole(folder: Path, pair: Processes) -> Path:
    pair.run(train_on, config_of(folder, "whole"), "refuse")
    return folder / "whole"


@pytest.mark.parametrize(
    "stops",
    [pytest.param((8,), id="epoch"), (3, 4, 11)],
    ids=lambda stops: "-".join(map(str, stops)),
)
def test_two_ranks(folder: Path, pair: Processes, whole: Path, stops: tuple[int, ...]) -> None:
    name = "stopped" + "-".join(map(str, stops))
    existing: Existing = "refuse"
    for stop in stops:
        config = config_of(folder, name, train={"max_steps": stop})
        pair.run(train_on, config, existing)
        existing = "resume"
    pair.run(train_on, config_of(folder, name), existing)
    assert_equal(folder / name, whole)


def test_records_of_lost_steps_come_again(folder: Path, pair: Processes, whole: Path) -> None:
    """Killed in step 13 with a checkpoint of step 6; the last line of the records is cut off."""
    options = {"checkpoint": {"every": 6, "keep": 5}}
    stopped = config_of(folder, "killed", train={"max_steps": 13}, **options)
    pair.run(train_on, stopped, "refuse")
    for step in (12, 13):
        (folder / "killed" / "checkpoints" / f"step_{step}" / "manifest.json").unlink()
    with (folder / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    pair.run(train_on, config_of(folder, "killed"), "resume")
    assert_equal(folder / "killed", whole)
    assert records(folder / "killed").keys() == records(whole).keys()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["equal", "cagrad"])
@pytest.mark.parametrize("tables", ["adagrad", "adam"])
@pytest.mark.parametrize("sharding", ["row_wise", "column_wise", "data_parallel"])
def test_other_settings(
    folder: Path, pair: Processes, rule: str, tables: str, sharding: str
) -> None:
    options = {
        "balance": {"rule": rule, "boundary": "experts"},
        "embedding": {"optimizer": tables, "lr": 0.01},
        "distributed": {"sharding": sharding},
    }
    name = f"{rule}-{tables}-{sharding}"
    pair.run(train_on, config_of(folder, f"{name}-whole", **options), "refuse")
    part = options | {"train": {"max_steps": 7}}
    pair.run(train_on, config_of(folder, name, **part), "refuse")
    pair.run(train_on, config_of(folder, name, **options), "resume")
    assert_equal(folder / name, folder / f"{name}-whole")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "column_wise", "data_parallel"])
def test_four_ranks(folder: Path, four: Processes, sharding: str) -> None:
    """On more than two ranks the order in which they are summed matters."""
    options = {"distributed": {"sharding": sharding}}
    name = f"four-{sharding}"
    four.run(train_on, config_of(folder, f"{name}-whole", **options), "refuse")
    part = options | {"train": {"max_steps": 5}}
    four.run(train_on, config_of(folder, name, **part), "refuse")
    four.run(train_on, config_of(folder, name, **options), "resume")
    assert_equal(folder / name, folder / f"{name}-whole")


def test_one_rank_in_this_process(folder: Path, alone: Any) -> None:
    train_on(alone, config_of(folder, "one"), "refuse")
    train_on(alone, config_of(folder, "one-stopped", train={"max_steps": 10}), "refuse")
    train_on(alone, config_of(folder, "one-stopped"), "resume")
    assert_equal(folder / "one-stopped", folder / "one")
