"""Day after day: each day is judged before it is trained on, and interruptions change nothing."""

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from stem_torchrec import checkpoint
from stem_torchrec.checkpoint.manifest import read_manifest
from stem_torchrec.config import Config
from stem_torchrec.config.reading import load_config
from stem_torchrec.errors import UserError
from stem_torchrec.runs.folder import Existing
from stem_torchrec.runs.replayed import Replayed
from stem_torchrec.training.finished_run import evaluate_run
from stem_torchrec.training.job import train
from stem_torchrec.training.replay import replay_of
from tests.distributed.processes import Processes
from tests.support.prepared import small_config, small_data
from tests.training.test_exact_resume import SPEED, saved

DAYS = [f"2024-01-0{day}" for day in range(1, 8)]
OPTIONS = ["--train.log_every=2", "--model.dropout=0.3", "--balance.rule=multi_balance"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven days of 301 or 300 rows: 2 steps each on two ranks."""
    folder = tmp_path_factory.mktemp("replay")
    small_data(folder / "data", world="drift", days=7, train_rows=2103)
    return folder


def config_of(folder: Path, name: str, *options: str) -> Config:
    path = small_config(folder / f"{name}.yaml", folder / "data", folder / name)
    return load_config(path, [*OPTIONS, *options])


def replay(ranks: Any, config: Config, existing: Existing = "refuse", horizon: int = 1) -> None:
    torch.rand(3)  # the generators' states at the start are not what makes runs equal
    settled, replayed, _ = replay_of(config, None, horizon)
    train(settled, ranks, existing=existing, listener=lambda _: None, replayed=replayed)


def records(run_dir: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """By kind and step, without what is speed; none twice."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    keys = [(record["kind"], record["step"]) for record in found]
    assert len(set(keys)) == len(keys)
    kept = ({k: v for k, v in record.items() if k not in SPEED} for record in found)
    return dict(zip(keys, kept, strict=True))


@pytest.fixture(scope="module")
def whole(folder: Path, pair: Processes) -> Path:
    pair.run(replay, config_of(folder, "whole", "--checkpoint.keep=9"), "refuse", 3)
    return folder / "whole"


def test_every_day_is_judged_then_trained_on_once_and_saved(folder: Path, whole: Path) -> None:
    days = [record for (kind, _), record in records(whole).items() if kind == "day"]
    assert [record["day"] for record in days] == DAYS
    assert [record["step"] for record in days] == list(range(0, 14, 2))
    assert [record["untrained"] for record in days] == [True] + [False] * 6
    assert sum(record["samples"] for record in days) == 2103
    assert [list(record["ahead"]) for record in days] == [["2", "3"]] * 5 + [["2"], []]
    assert days[1]["ahead"]["3"]["day"] == DAYS[3]
    steps = checkpoint.saved_steps(whole / checkpoint.FOLDER)
    assert steps == list(range(2, 15, 2))
    found = [read_manifest(whole / checkpoint.FOLDER / f"step_{n}").about["day"] for n in steps]
    assert found == DAYS


def evaluated(ranks: Any, config: Config, step: int) -> dict[str, Any]:
    return evaluate_run(config, ranks, "train", step)


def test_a_day_is_judged_by_the_weights_of_the_day_before(
    folder: Path, whole: Path, pair: Processes
) -> None:
    """What a checkpoint's weights say of a day afterwards is what its record says."""
    words = ["--data.days", DAYS[3], "--run.dir", str(whole)]
    config = load_config(whole / "config.yaml", words)
    there = pair.run(evaluated, config, 6)[0]
    days = records(whole)
    assert days["day", 6]["auc"] == there["auc"]
    assert days["day", 6]["ne"] == pytest.approx(there["ne"], rel=1e-6)
    for step, distance in ((4, "2"), (2, "3")):
        earlier = days["day", step]["ahead"][distance]
        assert earlier["day"] == DAYS[3]
        assert earlier["ne"] != pytest.approx(there["ne"], rel=1e-4)


def lose(run_dir: Path, *steps: int) -> None:
    """As if the ranks had been killed while these checkpoints were written."""
    for step in steps:
        (run_dir / checkpoint.FOLDER / f"step_{step}" / "manifest.json").unlink()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "day", "da')


def test_two_kills_in_between_change_nothing(folder: Path, pair: Processes, whole: Path) -> None:
    """One in the middle of a day, with a checkpoint there, and one a step after a day's end, with
    the checkpoints of that day lost."""
    options = ("--checkpoint.keep=9", "--checkpoint.every=3")
    pair.run(replay, config_of(folder, "killed", *options, "--train.max_steps=3"), "refuse", 3)
    pair.run(replay, config_of(folder, "killed", *options, "--train.max_steps=9"), "resume", 3)
    lose(folder / "killed", 9, 8)
    pair.run(replay, config_of(folder, "killed", *options), "resume", 3)
    ours, theirs = records(folder / "killed"), records(whole)
    assert {key: ours[key] for key in theirs} == theirs
    left, right = saved(folder / "killed"), saved(whole)
    assert left.keys() == right.keys()
    for name, value in left.items():
        same = torch.equal(value, right[name]) if torch.is_tensor(value) else value == right[name]
        assert same, name


def test_another_number_of_ranks_goes_on(folder: Path, pair: Processes, alone: Any) -> None:
    """Stopped in the middle of a day: every row of every day still comes once."""
    pair.run(replay, config_of(folder, "fewer", "--train.max_steps=3"))
    replay(alone, config_of(folder, "fewer"), "resume")
    found = records(folder / "fewer")
    assert [record["day"] for (kind, _), record in found.items() if kind == "day"] == DAYS
    assert max(record["samples"] for (kind, _), record in found.items() if kind == "train") == 2103


@pytest.mark.parametrize(
    ("days", "horizon", "message"),
    [
        ("2024-01-05:2024-01-02", 1, "the last day lies before the first"),
        ("yesterday", 1, "expected a day such as"),
        ("2024-01-06:2024-01-09", 1, "no 2024-01-08, 2024-01-09; it has 2024-01-01 to 2024-01-07"),
        ("2024-01-02:2024-01-04", 0, "--horizon: 0; allowed: 1 to 3"),
        ("2024-01-02:2024-01-04", 4, "--horizon: 4; allowed: 1 to 3"),
    ],
)
def test_days_that_cannot_be(folder: Path, days: str, horizon: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replay_of(config_of(folder, "no"), days, horizon)


def test_gaps_folders_without_days_and_days_twice(folder: Path, tmp_path: Path) -> None:
    train_split = shutil.copytree(folder / "data", tmp_path / "data") / "train"
    config = config_of(folder, "no", f"--data.path={tmp_path / 'data'}")
    shutil.rmtree(train_split / "date=2024-01-03")
    with pytest.raises(UserError, match=r"no 2024-01-03;.*--allow-missing passes"):
        replay_of(config, None)
    settled, replayed, notes = replay_of(config, None, allow_missing=True)
    assert [str(day) for day in replayed.days] == DAYS[:2] + DAYS[3:]
    assert (settled.data.days, notes) == ("2024-01-01:2024-01-07", [])
    shutil.copytree(train_split / "date=2024-01-02", train_split / "day=20240102")
    with pytest.raises(UserError, match=r"2024-01-02 twice: in date=2024-01-02 and in day=2024"):
        replay_of(config, None)
    shutil.rmtree(train_split / "day=20240102")
    (train_split / "date=2024-01-02" / "part-0.parquet").rename(train_split / "part-0.parquet")
    with pytest.raises(UserError, match=r"part-0\.parquet has no day in its name"):
        replay_of(config, None)


def test_a_replay_has_no_evaluations_for_plateaus(folder: Path) -> None:
    config = config_of(folder, "no", "--optim.decay=plateau")
    with pytest.raises(UserError, match=r"'plateau' goes by evaluations .* and a replay has none"):
        replay_of(config, None)


def test_keys_that_a_replay_has_of_its_own(folder: Path) -> None:
    config = config_of(folder, "no", "--train.epochs=3", "--checkpoint.keep_best=valid/auc_mean")
    settled, _, notes = replay_of(config, DAYS[0])
    assert (settled.train.epochs, settled.checkpoint.keep_best) == (1, None)
    assert notes == [
        "train.epochs has no effect in a replay",
        "checkpoint.keep_best has no effect in a replay",
    ]


@pytest.mark.parametrize(
    ("days", "horizon", "message"),
    [
        (DAYS[:6], 3, r"--days: 2024-01-01:2024-01-06 \(6 days\), but the replay there goes"),
        (DAYS, 2, "--horizon: 2, but the replay there has 3"),
        (None, 1, "holds a replay; go on with replay"),
    ],
)
def test_another_replay_is_not_gone_on_with(
    folder: Path, whole: Path, alone: Any, days: list[str] | None, horizon: int, message: str
) -> None:
    chosen = tuple(map(date.fromisoformat, days)) if days else None
    replayed = Replayed(chosen, horizon) if chosen else None
    with pytest.raises(UserError, match=message):
        train(
            config_of(folder, "whole"),
            alone,
            existing="resume",
            listener=lambda _: None,
            replayed=replayed,
        )
