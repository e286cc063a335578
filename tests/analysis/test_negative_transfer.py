"""``analyze negative-transfer`` end to end, and its assembly over seeds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from sklearn.metrics import log_loss, roc_auc_score

from stem_torchrec.analysis.negative_transfer import analyse
from stem_torchrec.analysis.negative_transfer_report import gain_table, report
from stem_torchrec.analysis.runs import Model, Run, read_runs
from stem_torchrec.analysis.subsets import Buckets
from stem_torchrec.cli import main
from stem_torchrec.cli.workers import predict_worker
from stem_torchrec.training.evaluation import Joined
from tests.analysis.mistakes import message_of_mistake

TASKS = ("click", "like")
Command = Callable[..., int]


@pytest.fixture(scope="module")
def out(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "deep"
    options = ["--single", str(finished / "click"), str(finished / "like"), "--runs"]
    options += [str(finished / name) for name in ("both", "both_1", "plain")]
    options += ["--tasks", "click,like", "--out", str(out), "--buckets", "5", "--comparable", "1"]
    assert main(["analyze", "negative-transfer", *options]) == 0
    assert not dist.is_initialized()
    return out


def scores(data: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["model"], row["task"], row["subset"]): row for row in data["scores"]}


def evaluation(run_dir: Path, split: str) -> dict[str, Any]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return next(r for r in map(json.loads, lines) if r.get("split") == split)


ALL_TABLES = "stem_net model.task_specific_features=all"
NO_TABLES = "stem_net model.task_specific_features=none"


def test_all_samples_have_the_runs_own_figures(out: Path, finished: Path) -> None:
    """The eval record that training left, made by other code."""
    found = scores(json.loads((out / "negative_transfer.json").read_text()))

    def recorded(name: str) -> dict[str, Any]:
        return evaluation(finished / name, "test")

    for figure in ("auc", "logloss"):
        for task in TASKS:
            singles = [recorded(task)[figure][task]]
            runs = [recorded(name)[figure][task] for name in ("both", "both_1")]
            values = found["single-task", task, "all"][figure]["values"]
            assert values == pytest.approx(singles, abs=1e-6)
            row = found[ALL_TABLES, task, "all"]
            assert row[figure]["values"] == pytest.approx(runs, abs=1e-6)
            sign = 1 if figure == "auc" else -1
            expected = [sign * (run - singles[0]) for run in runs]
            assert row[f"{figure}_gain"]["values"] == pytest.approx(expected, abs=1e-6)
            assert row[f"{figure}_gain"]["mean"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_subsets_are_those_of_the_single_runs(out: Path, finished: Path) -> None:
    """Subsets and scores again, by sorting in Python and with scikit-learn."""
    data = json.loads((out / "negative_transfer.json").read_text())
    found = scores(data)
    buckets = []
    for task in TASKS:
        config = read_runs("--single", [finished / task])[0].config
        logits = predict_worker(config, "test").logits[:, 0]
        order = sorted(range(len(logits)), key=lambda i: logits[i])
        bucket = np.empty(len(logits), dtype=int)
        for part, indices in enumerate(np.array_split(order, 5)):
            bucket[indices] = part
        buckets.append(bucket)
    difference = buckets[0] - buckets[1]
    masks = {
        "click-overwhelming": difference > 1,
        "comparable": abs(difference) <= 1,
        "like-overwhelming": difference < -1,
    }
    run = predict_worker(read_runs("--runs", [finished / "plain"])[0].config, "test")
    sizes = {row["subset"]: row for row in data["subsets"]}
    for name, own in masks.items():
        assert sizes[name]["samples"] == own.sum() > 0
        for index, task in enumerate(TASKS):
            y, x = run.labels[own, index], run.logits[own, index]
            row = found[NO_TABLES, task, name]
            assert row["auc"]["mean"] == pytest.approx(roc_auc_score(y, x), abs=1e-9)
            loss = log_loss(y, 1 / (1 + np.exp(-x)))
            assert row["logloss"]["mean"] == pytest.approx(loss, abs=1e-9)
            assert sizes[name]["positive_rate"][task] == pytest.approx(y.mean())
    assert sum(sizes[name]["samples"] for name in masks) == sizes["all"]["samples"] == 401


def test_report_says_what_was_done(out: Path, finished: Path) -> None:
    files = {path.name for path in out.iterdir()}
    names = {f"negative_transfer.{ending}" for ending in ("md", "json", "html")}
    assert files == names | {"negative_transfer_1.png"}
    text = (out / "negative_transfer.md").read_text()
    for part in ("test split", "5 equally large buckets", "|d| <= 1", "Su et al. (AAAI 2024)"):
        assert part in text
    for name in ("click", "like", "both", "both_1", "plain"):
        assert str(finished / name) in text
    assert (out / "negative_transfer_1.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_is_on_the_console(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--single", str(finished / "click"), str(finished / "like")]
    options += ["--runs", str(finished / "both"), "--tasks", "like,click", "--out", str(tmp_path)]
    capsys.readouterr()
    assert main(["analyze", "negative-transfer", *options, "--split", "valid"]) == 0
    text = capsys.readouterr().out
    assert "like-overwhelming" in text
    assert "AUC gain" in text
    assert f"written: {tmp_path / 'negative_transfer.html'}" in text
    data = json.loads((tmp_path / "negative_transfer.json").read_text())
    assert (data["split"], data["tasks"]) == ("valid", ["like", "click"])
    assert (data["buckets"], data["comparable"]) == (10, 3)
    for task, value in evaluation(finished / "both", "valid")["auc"].items():
        assert scores(data)["stem_net", task, "all"]["auc"]["mean"] == pytest.approx(value)


def fake(finished: Path, name: str, seed: int, label: str) -> Run:
    run = read_runs("--runs", [finished / name], ["--distributed.sharding", "auto"])[0]
    section = run.config.run.model_copy(update={"seed": seed})
    return Run(Path(label), run.config.model_copy(update={"run": section}), run.schema)


def test_each_seed_is_compared_with_its_own_single_runs(finished: Path) -> None:
    """Four samples; the second seed's single runs part them the other way round."""
    singles = [fake(finished, t, s, f"{t}{s}") for s in (0, 1) for t in TASKS]
    runs = [fake(finished, "both", s, f"both{s}") for s in (0, 1)]
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=np.float64)
    up = np.array([[0.0], [1], [2], [3]])

    def of(logits: np.ndarray, columns: list[int]) -> Joined:
        return Joined(logits, labels[:, columns], np.ones((4, len(columns))), None)

    predictions = {
        Path("click0"): of(up, [0]),
        Path("like0"): of(-up, [1]),
        Path("click1"): of(-up, [0]),
        Path("like1"): of(up, [1]),
        Path("both0"): of(labels, [0, 1]),
        Path("both1"): of(-labels, [0, 1]),
    }
    models = [Model("stem_net", tuple(runs))]
    found = analyse(TASKS, "test", Buckets(2, 0), singles, models, predictions)
    # Samples 0, 1 have click below like in seed 0, above it in seed 1.
    assert [pair[0].path.name for pair in found.sizes] == ["click0", "click1"]
    for sizes in found.sizes.values():
        assert [sizes[n].samples for n in ("A", "comparable", "B")] == [2, 0, 2]
    assert found.score("stem_net", "click", "all", "auc").values == (1, 0)
    # click0 ranks 0 < 1 < 2 < 3 with labels 1 0 1 0: AUC 1/4; click1 the other way: 3/4.
    assert found.single("click", "all", "auc").values == (0.25, 0.75)
    assert found.gain("stem_net", "click", "all", "auc").values == (0.75, -0.75)
    assert found.gain("stem_net", "click", "A", "auc").values == (1 - 0, 0 - 1)
    assert found.gain("stem_net", "click", "comparable", "auc").mean is None
    rows = {(r[0], r[1], r[2]): r[3:] for r in gain_table(found).rows}
    assert rows["click", "all", "stem_net"][:2] == ["0.5000 ± 0.7071", "+0.0000 ± 1.0607"]
    assert rows["click", "comparable", "stem_net"] == ["-"] * 4


def test_report_with_an_empty_subset(finished: Path, tmp_path: Path) -> None:
    singles = [fake(finished, task, 0, task) for task in TASKS]
    run = fake(finished, "both", 0, "both")
    logits = np.array([[0.0, 0], [1, 1], [2, 2]])
    labels = np.array([[0.0, 1], [1, 0], [0, 1]])
    both = Joined(logits, labels, np.ones((3, 2)), None)
    columns = {
        Path(task): Joined(logits[:, [i]], labels[:, [i]], np.ones((3, 1)), None)
        for i, task in enumerate(TASKS)
    }
    models = [Model("stem_net", (run,))]
    found = analyse(TASKS, "test", Buckets(2, 0), singles, models, {Path("both"): both, **columns})
    report(found, "").write(tmp_path, "empty")
    assert "NaN" not in (tmp_path / "empty.json").read_text()
    assert "nan" not in (tmp_path / "empty.md").read_text()
    assert (
        "| click | click-overwhelming | stem_net | - | - | - | - |"
        in (tmp_path / "empty.md").read_text()
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--buckets", "1"], ["--buckets", "1"]),
        (["--comparable", "9"], ["--comparable", "9", "0 to 8"]),
        (["--tasks", "click"], ["--tasks", "'click'", "two"]),
        (["--tasks", "click,click"], ["--tasks", "two different"]),
        (["--tasks", "click,like,buy"], ["--tasks", "two"]),
        (["--tasks", "click,buy"], ["--single", "'buy'", "click, like"]),
        (["--single", "FINISHED/both"], ["--single", "both", "stem_net", "single_task"]),
        (["--single", "FINISHED/click"], ["--single", "'like'"]),
        (["--single", "FINISHED/data"], ["--single", "data", "holds no run"]),
        (["--runs", "FINISHED/data"], ["--runs", "data", "holds no run"]),
        (["--runs", "FINISHED/like"], ["--tasks", "'click'", "like"]),
        (["--runs", "FINISHED/both", "FINISHED/both"], ["--runs", "given twice"]),
        (["--out", "FINISHED/both.yaml"], ["--out", "both.yaml", "is a file"]),
        (["--data.path", "no/where"], ["data.path", "no/where"]),
        (["--train.epochs", "2"], ["--train.epochs", "data.path"]),
        (["--bucket", "5"], ["--bucket", "unknown option"]),
    ],
)
def test_mistakes(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    expected: list[str],
) -> None:
    message = message_of_mistake("negative-transfer", options, finished, tmp_path / "out", capsys)
    assert [part for part in expected if part not in message] == []


def test_missing_split(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bare := tmp_path / "bare").mkdir()
    (bare / "schema.json").write_text((finished / "data" / "schema.json").read_text())
    options = ["--single", str(finished / "click"), str(finished / "like")]
    options += ["--runs", str(finished / "both"), "--tasks", "click,like"]
    options += ["--out", str(tmp_path / "out"), "--data.path", str(bare)]
    capsys.readouterr()
    assert main(["analyze", "negative-transfer", *options]) == 2
    assert "split 'test' is missing" in capsys.readouterr().err


def test_several_ranks_are_refused(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = ["--single", "a", "--runs", "b", "--tasks", "c,d", "--out", str(tmp_path / "out")]
    assert main(["analyze", "preference", *options]) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_a_single_task_run_tells_both_tasks(finished: Path, tmp_path: Path) -> None:
    options = ["--single", str(finished / "single"), "--runs", str(finished / "both")]
    options += ["--tasks", "click,like", "--out", str(tmp_path)]
    assert main(["analyze", "negative-transfer", *options]) == 0
    found = scores(json.loads((tmp_path / "negative_transfer.json").read_text()))
    for task in TASKS:
        recorded = evaluation(finished / "single", "test")["auc"][task]
        assert found["single-task", task, "all"]["auc"]["values"] == [pytest.approx(recorded)]
