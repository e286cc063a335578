"""The commands end to end on a small data set, with real processes."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from stem_torchrec.cli import main
from tests.support.prepared import TASKS, small_config, small_data

Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    small_data(folder / "data")
    return folder


def run(folder: Path, name: str, *options: str) -> Path:
    config = small_config(folder / f"{name}.yaml", folder / "data", folder / name)
    assert main(["train", "--config", str(config), *options]) == 0
    return folder / name


def records(run_dir: Path, kind: str) -> Records:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> Path:
    return run(folder, "two_ranks", "--nproc", "2", "--train.epochs", "2", "--eval.every", "6")


def evaluation(run_dir: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run_dir), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_run_folder(two_ranks: Path) -> None:
    names = {path.name for path in two_ranks.iterdir()}
    assert names == {"config.yaml", "schema.json", "plan.txt", "metrics.jsonl", "checkpoints", "tb"}
    assert "shared__user_id" in (two_ranks / "plan.txt").read_text()
    assert [path.name for path in (two_ranks / "checkpoints").iterdir()] == ["step_16"]
    assert any((two_ranks / "tb").iterdir())


def test_train_records_count_real_samples_of_all_ranks(two_ranks: Path) -> None:
    trained = records(two_ranks, "train")
    assert [record["step"] for record in trained] == [5, 10, 15, 16]
    assert trained[-1]["samples"] == 2 * 2003
    assert [record["epoch"] for record in trained] == [1, 2, 2, 2]  # of 8 steps each
    for record in trained:
        assert set(record) >= {"samples", "qps", "loss", "ne", "ne_window", "lr", "balance"}
        assert set(record["loss"]) == set(record["ne"]) == set(TASKS)
    assert trained[-1]["loss"]["click"] < trained[0]["loss"]["click"]


def test_eval_records(two_ranks: Path) -> None:
    evaluated = [(r["split"], r["step"], r["samples"]) for r in records(two_ranks, "eval")]
    valid = [("valid", step, 301) for step in (6, 12, 16)]
    assert evaluated == [*valid, ("test", 16, 401)]
    assert [record["epoch"] for record in records(two_ranks, "eval")] == [1, 2, 2, 2]


def test_evaluate_on_another_number_of_ranks(
    two_ranks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = records(two_ranks, "eval")[-1]
    for options in ((), ("--distributed.sharding", "row_wise", "--nproc", "2")):
        found = evaluation(two_ranks, capsys, "--split", "test", *options)
        assert set(found) == set(expected)
        assert (found["step"], found["epoch"]) == (16, 2)
        for name in ("logloss", "ne", "auc", "gauc", "calibration"):
            assert found[name] == pytest.approx(expected[name], abs=1e-6)


def test_resolved_config_starts_the_same_run_again(folder: Path, two_ranks: Path) -> None:
    again = folder / "again"
    resolved = two_ranks / "config.yaml"
    assert "torch" in yaml.safe_load(resolved.read_text())["versions"]
    options = ["--run.dir", str(again), "--nproc", "2"]
    assert main(["train", "--config", str(resolved), *options]) == 0
    for first, second in zip(records(two_ranks, "train"), records(again, "train"), strict=True):
        assert first["loss"] == second["loss"]
    assert records(two_ranks, "eval") == records(again, "eval")


def test_evaluation_between_steps_changes_nothing(folder: Path) -> None:
    """Batches in flight wait in the pipeline while it evaluates."""
    without = run(folder, "without", "--eval.every", "1000")
    between = run(folder, "between", "--eval.every", "3")
    assert [r["loss"] for r in records(without, "train")] == [
        r["loss"] for r in records(between, "train")
    ]
    assert records(without, "eval")[-1] == records(between, "eval")[-1]


def test_resume_ends_where_an_uninterrupted_run_ends(folder: Path) -> None:
    options = ["--optim.warmup_steps", "4", "--optim.decay_steps", "32", "--train.epochs", "2"]
    whole = run(folder, "whole", *options)
    part = run(folder, "part", *options, "--train.max_steps", "20", "--checkpoint.every", "5")
    kept = sorted(path.name for path in (part / "checkpoints").iterdir())
    assert kept == ["step_15", "step_20"]
    config = str(folder / "part.yaml")
    assert main(["train", "--config", config, *options, "--resume"]) == 0
    assert records(part, "train")[-1]["step"] == 32
    assert records(part, "eval")[-1]["auc"] == records(whole, "eval")[-1]["auc"]


def test_auc_is_that_of_the_models_predictions(folder: Path, alone: object) -> None:
    """The reported AUC against scikit-learn on predictions read in another way."""
    from stem_torchrec.config.reading import load_config
    from stem_torchrec.training.evaluating import evaluate
    from stem_torchrec.training.session import build, open_split

    path = small_config(folder / "auc.yaml", folder / "data", folder / "auc")
    session = build(load_config(path), alone)  # type: ignore[arg-type]
    record = evaluate(session, "test", 0)
    labels, scores = [], []
    for batch, logits in session.step.predict(open_split(session, "test").epoch(0)):
        labels.append(batch.labels)
        scores.append(logits)
    for index, task in enumerate(TASKS):
        column = [[row[index] for part in parts for row in part.tolist()]
                  for parts in (labels, scores)]  # fmt: skip
        assert record["auc"][task] == pytest.approx(roc_auc_score(*column), abs=1e-6)


def test_resume_on_other_ranks_and_batch_sizes(folder: Path) -> None:
    """Every row of both epochs once; steps go on counting, their total is that of the new shape."""
    epochs = ["--train.epochs", "2", "--train.log_every", "1"]
    moved = run(folder, "moved", *epochs, "--nproc", "2", "--train.max_steps", "11")
    resume = ["train", "--config", str(folder / "moved.yaml"), *epochs, "--resume"]
    other = ["--train.batch_size", "200", "--nproc", "1", "--train.max_steps", "13"]
    assert main([*resume, *other]) == 0
    assert main([*resume, "--train.batch_size", "64", "--nproc", "2"]) == 0
    trained = records(moved, "train")
    assert [record["step"] for record in trained] == list(range(1, 21))
    first = 3 * 2 * 128  # of the second epoch
    samples = [record["samples"] for record in trained]
    assert samples[7] == 2003
    assert samples[10] == 2003 + first
    assert samples[12] == 2003 + first + 2 * 200
    assert samples[13] == samples[12] + 2 * 64
    assert samples[-1] == 2 * 2003
    # 2003 - 768 rows were left; 1235 - 400 after that, 418 of them on one rank.
    assert trained[12]["total_steps"] == 13
    assert trained[-1]["total_steps"] == 11 + 2 + 7


def test_resume_refuses_another_order_of_rows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = run(folder, "inside", "--train.max_steps", "3")
    before = (part / "metrics.jsonl").read_text()
    config = str(folder / "inside.yaml")
    assert main(["train", "--config", config, "--resume", "--run.seed", "1"]) == 2
    assert "order of rows has changed" in capsys.readouterr().err
    assert (part / "metrics.jsonl").read_text() == before


def test_left_out_negatives_are_in_no_step(folder: Path) -> None:
    options = ["--data.negative_rate", "0.3", "--distributed.sharding", "row_wise", "--nproc", "2"]
    run_dir = run(folder, "negatives", *options, "--train.epochs", "8", "--optim.lr", "0.01")
    table = pq.read_table(folder / "data" / "train", columns=list(TASKS))
    negatives = sum(not any(row.values()) for row in table.to_pylist())
    samples = records(run_dir, "train")[-1]["samples"] / 8
    assert abs(samples - (2003 - negatives) - 0.3 * negatives) < 4 * (0.21 * negatives) ** 0.5
    # The weights keep the model calibrated for all rows, and the test split is whole.
    evaluated = records(run_dir, "eval")[-1]
    assert evaluated["samples"] == 401
    assert all(0.7 < value < 1.5 for value in evaluated["calibration"].values())


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "data_parallel"])
def test_task_and_feature_subsets(folder: Path, sharding: str) -> None:
    options = ["--tasks.names", "like", "--data.features", "user_id,item_id", "--train.max_steps"]
    run_dir = run(folder, sharding, *options, "3", "--distributed.sharding", sharding)
    assert set(records(run_dir, "eval")[-1]["auc"]) == {"like"}
    plan = (run_dir / "plan.txt").read_text()
    assert "like__user_id" in plan
    assert "click__" not in plan
    assert sharding in plan


def test_plan_needs_no_device(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(folder / "plan.yaml", folder / "data", folder / "plan")
    options = ["--world-size", "3", "--device", "cuda", "--distributed.sharding", "row_wise"]
    assert main(["plan", "--config", str(config), *options, "--gpus", "8,64"]) == 0
    report, cost = capsys.readouterr().out.split("Estimated ms of a step")
    assert "3 cuda ranks" in report
    rows = [line.split() for line in cost.splitlines()[3:]]
    assert [row[0] for row in rows] == ["3", "8", "64"]
    assert all(float(row[6]) > 0 for row in rows)
    assert main(["plan", "--config", str(config), "--hardware", "abacus"]) == 2
    assert "h100, h200" in capsys.readouterr().err
    assert report.count("row_wise") == 3 * 9
    assert not (folder / "plan").exists()


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    from stem_torchrec.config.keys import all_keys

    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for key in all_keys():
        assert f"--{key.name} " in text
        assert key.description in text


def test_resume_refuses_another_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = run(folder, "changed", "--train.max_steps", "2")
    config = ["train", "--config", str(folder / "changed.yaml"), "--resume"]
    assert main([*config, "--model.dropout", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "--resume: model.dropout is 0.5, but the run has 0.0" in error
    assert "--init-from" in error
    assert main([*config, "--train.max_steps", "4", "--checkpoint.keep", "1"]) == 0
    kept = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert (kept["train"]["max_steps"], kept["checkpoint"]["keep"]) == (4, 1)


def test_the_best_checkpoint_stays(folder: Path) -> None:
    options = ["--eval.every", "2", "--train.max_steps", "8", "--checkpoint.keep", "1"]
    run_dir = run(folder, "best", *options, "--checkpoint.keep_best", "valid/ne/click")
    valid = [record for record in records(run_dir, "eval") if record["split"] == "valid"]
    best = min(valid, key=lambda record: (record["ne"]["click"], -record["step"]))
    kept = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert kept == {f"step_{best['step']}", "step_8"}


def test_init_from(
    folder: Path, two_ranks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--init-from", str(two_ranks), "--train.max_steps", "1", "--optim.lr", "1e-9"]
    options += ["--embedding.lr", "1e-9"]
    tuned = run(folder, "tuned", *options, "--distributed.sharding", "row_wise")
    ours, theirs = (records(path, "eval")[-1] for path in (tuned, two_ranks))
    for metric in ("logloss", "auc"):
        assert ours[metric] == pytest.approx(theirs[metric], abs=1e-5)
    report = json.loads((tuned / "init.json").read_text())
    assert report["from"] == str(two_ranks / "checkpoints" / "step_16")
    assert "tensors start from" in capsys.readouterr().err
    config = str(folder / "tuned.yaml")
    assert main(["train", "--config", config, "--resume", *options[:2]]) == 2
    assert main(["train", "--config", config, "--overwrite", "--init-map", "a=b"]) == 2
    assert "--init-map: has no meaning without --init-from" in capsys.readouterr().err
    assert main(["train", "--config", config, "--overwrite", "--init-checkpoint", "best"]) == 2
    assert "--init-checkpoint: has no meaning without --init-from" in capsys.readouterr().err
    other = ["--init-from", str(two_ranks), "--init-checkpoint", "999"]
    assert main(["train", "--config", config, "--overwrite", *other]) == 2
    assert "checkpoint 999: none of this step is whole" in capsys.readouterr().err
    assert (tuned / "init.json").is_file()


@pytest.mark.parametrize("name", ["valid/ne/share", "valid/calibration/click"])
def test_a_best_checkpoint_that_cannot_be_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    config = small_config(folder / "nobest.yaml", folder / "data", folder / "nobest")
    assert main(["train", "--config", str(config), "--checkpoint.keep_best", name]) == 2
    assert "checkpoint.keep_best: " in capsys.readouterr().err
    assert not (folder / "nobest").exists()
