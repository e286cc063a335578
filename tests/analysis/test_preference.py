"""``analyze preference`` end to end, and its assembly over runs and owners."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from stem_torchrec.analysis.preference import Analysis, Question, analyse, choose_feature
from stem_torchrec.analysis.preference_report import distance_table, report
from stem_torchrec.analysis.runs import Model, Run, read_runs
from stem_torchrec.cli import main
from stem_torchrec.cli.workers import tables_worker
from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.errors import UserError
from tests.analysis.mistakes import message_of_mistake

TASKS = ("click", "like")


@pytest.fixture(scope="module")
def out(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    options = ["--single", str(finished / "like"), str(finished / "click"), "--runs"]
    options += [str(finished / "both"), str(finished / "plain")]
    options += ["--tasks", "click,like", "--out", str(out)]
    assert main(["analyze", "preference", *options]) == 0
    assert not dist.is_initialized()
    return out


def rows_of(finished: Path, name: str, owner: str) -> np.ndarray:
    """Distances of the test samples, from the tables and the Parquet files."""
    run = read_runs("--runs", [finished / name])[0]
    features = [f for f in run.schema.features if f.name in ("user_id", "item_id")]
    tables = tables_worker(run.config, features)[owner]
    stored = pq.read_table(finished / "data" / "test")
    users, items = (tables[n][stored[n].to_numpy()] for n in ("user_id", "item_id"))
    return np.linalg.norm(users.astype(np.float64) - items, axis=1)


def test_figures_again_from_the_tables(out: Path, finished: Path) -> None:
    data = json.loads((out / "preference.json").read_text())
    assert (data["user_feature"], data["item_feature"]) == ("user_id", "item_id")
    click, like = rows_of(finished, "click", "click"), rows_of(finished, "like", "like")

    def near(values: np.ndarray) -> np.ndarray:
        """Mean rank from 1, in the nearest 40 %."""
        ranks = [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]
        return np.array(ranks) < 0.4 * len(values) + 0.5

    directions = {
        "click close, like far": near(click) & near(-like),
        "click far, like close": near(-click) & near(like),
    }
    for pair in data["pairs"]:
        own = directions[pair["direction"]]
        assert pair["samples"] == own.sum() > 0
        assert pair["share"] == own.mean()
    assert len(data["distances"]) == 2 + 3 + 1
    found = {(Path(row["run"]).name, row["owner"]): row for row in data["distances"]}
    for name, owner in (("click", "click"), ("both", "shared"), ("both", "like")):
        values = rows_of(finished, name, owner)
        for direction, own in directions.items():
            row = found[name, owner][direction]
            assert row["pairs"] == own.sum()
            assert row["mean"] == pytest.approx(values[own].mean())
            assert row["std"] == pytest.approx(values[own].std())
            assert row["median"] == pytest.approx(np.median(values[own]))
    assert found["click", "click"]["separation"] == 1
    assert found["like", "like"]["separation"] == 0
    assert {owner for name, owner in found if name == "plain"} == {"shared"}


def test_report_says_what_was_done(out: Path, finished: Path) -> None:
    text = (out / "preference.md").read_text()
    for part in ("pair of user_id and item_id", "nearest 40 %", "test split", "seed 0"):
        assert part in text
    assert str(finished / "click") in text
    assert (out / "preference_1.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "preference.html").is_file()


def question(ids: tuple[list[int], list[int]], share: float = 0.5) -> Question:
    features = tuple(Feature(name=n, kind="id", num_embeddings=4) for n in ("user", "item"))
    users, items = (np.array(column) for column in ids)
    return Question(TASKS, "test", share, (features[0], features[1]), (users, items))


@pytest.fixture
def runs(finished: Path) -> dict[str, Run]:
    return {n: read_runs("--runs", [finished / n])[0] for n in ("click", "like", "both", "plain")}


def by_hand(runs: dict[str, Run], item_of_like: bool = True) -> Analysis:
    """Two users, items at 0: distances are the users' values."""

    def table(*values: float) -> np.ndarray:
        return np.array(values, dtype=np.float32)[:, None]

    item = table(0)
    tables = {
        runs["click"]: {"shared": {}, "click": {"user": table(1, 2), "item": item}},
        runs["like"]: {"like": {"user": table(9, 4), "item": item}},
        runs["both"]: {
            "shared": {"user": table(3, 3), "item": item},
            "click": {"user": table(5, 6), "item": item},
            "like": {"user": table(7, 1)} | ({"item": item} if item_of_like else {}),
        },
    }
    singles = [runs["click"], runs["like"]]
    models = [Model("stem_net", (runs["both"],))]
    asked = question(([0, 1, 0, 1], [0, 0, 0, 0]))
    return analyse(asked, singles, models, lambda run: tables[run])


def test_panels_by_hand(runs: dict[str, Run]) -> None:
    found = by_hand(runs)
    ((pairs),) = found.pairs.values()
    assert pairs.near_a.tolist() == [True, False, True, False]
    assert pairs.near_b.tolist() == [False, True, False, True]
    values = [(p.model, p.owner, p.near_a.tolist(), p.near_b.tolist()) for p in found.panels]
    assert values == [
        ("single-task", "click", [1, 1], [2, 2]),
        ("single-task", "like", [9, 9], [4, 4]),
        ("stem_net", "shared", [3, 3], [3, 3]),
        ("stem_net", "click", [5, 5], [6, 6]),
        ("stem_net", "like", [7, 7], [1, 1]),
    ]
    assert [row[-1] for row in distance_table(found).rows[::2]] == [
        "1.0000", "0.0000", "0.5000", "1.0000", "0.0000",
    ]  # fmt: skip


def test_owners_without_a_table_are_left_out_and_named(runs: dict[str, Run]) -> None:
    found = by_hand(runs, item_of_like=False)
    assert found.left_out == [(runs["both"], "like")]
    assert [panel.owner for panel in found.panels] == ["click", "like", "shared", "click"]
    assert f"like of {runs['both'].path}" in report(found, "").sections[1].text


def test_report_without_contradicting_pairs(runs: dict[str, Run], tmp_path: Path) -> None:
    same = {"user": np.ones((2, 3), np.float32), "item": np.zeros((1, 3), np.float32)}
    singles = [runs["click"], runs["like"]]
    models = [Model("stem_net", (runs["both"],))]
    found = analyse(
        question(([0, 1], [0, 0])), singles, models, lambda run: dict.fromkeys(run.tasks, same)
    )
    report(found, "").write(tmp_path, "none")
    text = (tmp_path / "none.md").read_text()
    assert "| click close, like far | 0 | 0.0 % |" in text
    assert "nan" not in text.lower()
    assert json.loads((tmp_path / "none.json").read_text())["distances"][0]["separation"] is None


def test_a_single_run_without_own_tables(runs: dict[str, Run]) -> None:
    singles = [runs["click"], runs["like"]]
    models = [Model("stem_net", (runs["both"],))]
    with pytest.raises(UserError) as error:
        analyse(question(([0], [0])), singles, models, lambda run: {"shared": {}})
    for part in ("--single", str(runs["click"].path), "'click'", "'user'", "'item'"):
        assert part in str(error.value)


def feature(name: str, side: str, rows: int, **options: object) -> Feature:
    content = {"name": name, "kind": "id", "side": side, "num_embeddings": rows} | options
    return Feature.model_validate(content)


def test_default_feature_is_the_sides_largest_id() -> None:
    features = (
        feature("age", "user", 9),
        feature("user", "user", 50, table="user"),
        feature("seen", "user", 90, kind="bag"),
        feature("item", "item", 70),
    )
    schema = Schema(features=features, tasks=(Task(name="click"),))
    assert choose_feature(schema, "--user-feature", None, "user").name == "user"
    assert choose_feature(schema, "--item-feature", None, "item").name == "item"
    assert choose_feature(schema, "--user-feature", "age", "user").name == "age"
    with pytest.raises(UserError, match=r"--user-feature: 'seen' is a bag .*age, user, item"):
        choose_feature(schema, "--user-feature", "seen", "user")
    with pytest.raises(UserError, match=r"--user-feature: unknown feature 'usr'.*age, user"):
        choose_feature(schema, "--user-feature", "usr", "user")
    with pytest.raises(UserError, match=r"--item-feature: .*no id feature of side 'context'"):
        choose_feature(schema, "--item-feature", None, "context")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--share", "0.6"], ["--share", "0.6", "0.5"]),
        (["--share", "0"], ["--share", "0.0"]),
        (["--user-feature", "nobody"], ["--user-feature", "'nobody'", "user_id"]),
        (["--item-feature", "dense_0"], ["--item-feature", "id features"]),
        (["--item-feature", "user_id"], ["--item-feature", "'user_id'"]),
        (["--single", "FINISHED/plain"], ["--single", "plain", "single_task"]),
        (["--tasks", "like,like"], ["--tasks", "two different"]),
    ],
)
def test_mistakes(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    expected: list[str],
) -> None:
    message = message_of_mistake("preference", options, finished, tmp_path / "out", capsys)
    assert [part for part in expected if part not in message] == []


def test_a_single_task_run_has_a_table_per_task(finished: Path, tmp_path: Path) -> None:
    options = ["--single", str(finished / "single"), "--runs", str(finished / "single")]
    options += ["--tasks", "click,like", "--out", str(tmp_path)]
    assert main(["analyze", "preference", *options]) == 0
    data = json.loads((tmp_path / "preference.json").read_text())
    click, like = (rows_of(finished, "single", task) for task in TASKS)
    assert not np.array_equal(click, like)
    assert {p["owner"] for p in data["distances"]} == set(TASKS)
