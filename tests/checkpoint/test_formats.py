"""Checkpoints of earlier versions are read, those of others refused by their number."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stem_torchrec.checkpoint import Initial, newest, newest_valid, tell_of_layout
from stem_torchrec.checkpoint.manifest import FORMAT, Damaged, read_manifest, write_manifest
from stem_torchrec.config import EmbeddingConfig
from stem_torchrec.errors import UserError
from stem_torchrec.training.finished_run import evaluate_run
from stem_torchrec.training.job import train
from tests.checkpoint.saved_runs import config_of_run, go_on, saved, sign, unpack, whole_state


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return unpack(tmp_path)


def test_format_1_is_evaluated_as_it_was(
    run_dir: Path, alone: Any, caplog: pytest.LogCaptureFixture
) -> None:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    (before,) = [r for r in records if r["kind"] == "eval" and r["split"] == "test"]
    found = evaluate_run(config_of_run(run_dir), alone, "test")
    for task in ("click", "like"):
        assert found["logloss"][task] == pytest.approx(before["logloss"][task], rel=1e-6)
        assert found["auc"][task] == before["auc"][task]
    (warning,) = [r.message for r in caplog.records if r.name.startswith("stem_torchrec")]
    assert "hold no schema" in warning


def test_format_1_goes_on_and_is_saved_in_the_present_one(run_dir: Path, alone: Any) -> None:
    assert read_manifest(newest(run_dir)).format == 1
    go_on(alone, run_dir)
    manifest = read_manifest(newest(run_dir))
    assert manifest.about["step"] == 6
    assert manifest.format == FORMAT == 2
    assert manifest.about["schema"]["tasks"] == [{"name": "click"}, {"name": "like"}]
    assert (run_dir / "schema.json").is_file()


def test_format_1_goes_on_in_another_layout(tmp_path: Path, alone: Any) -> None:
    """Its tables' optimizer is SGD: the numbers are the same bit for bit."""
    runs = {layout: unpack(tmp_path / layout) for layout in ("separate", "fused")}
    for layout, run_dir in runs.items():
        go_on(alone, run_dir, "--embedding.layout", layout)
        assert read_manifest(newest(run_dir)).about["layout"] == layout
    separate, fused = (whole_state(newest(run_dir))["model"] for run_dir in runs.values())
    assert separate.keys() == fused.keys()
    assert all(torch.equal(separate[name], fused[name]) for name in separate)


def test_another_layout_is_told_where_it_changes_an_optimizer(
    run_dir: Path, alone: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def told(**keys: Any) -> list[str]:
        caplog.clear()
        tell_of_layout(newest(run_dir), EmbeddingConfig(**keys), alone)
        return [record.message for record in caplog.records]

    assert told() == told(optimizer="adagrad", layout="fused") == []
    (mean,) = told(layout="fused")
    assert "with fused: row-wise Adagrad's accumulator of a row is the mean" in mean
    go_on(alone, run_dir, "--embedding.layout", "fused")
    assert told(layout="fused") == []
    (copies,) = told()
    assert "with separate: row-wise Adagrad's accumulator of a row goes to each" in copies


def test_format_1_gives_first_weights(run_dir: Path, alone: Any) -> None:
    config = config_of_run(run_dir, "--run.dir", str(run_dir.parent / "new"))
    found: list[Any] = []
    train(config, alone, existing="refuse", listener=found.append, initial=Initial(run_dir))
    assert found[0]["kind"] == "init"
    assert found[0]["initial"] == {}


def test_another_format_is_refused_by_its_number(run_dir: Path, alone: Any) -> None:
    folder = newest(run_dir)
    write_manifest(folder, read_manifest(folder)._replace(format=FORMAT + 1))
    with pytest.raises(UserError, match="a checkpoint of format 3; this version reads 1 to 2"):
        newest_valid(run_dir, alone)


def test_a_damaged_number_is_damage(run_dir: Path, alone: Any) -> None:
    go_on(alone, run_dir)
    file = newest(run_dir) / "manifest.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(Damaged, match="does not match its own checksum"):
        read_manifest(file.parent)
    assert newest_valid(run_dir, alone).name == "step_4"


def test_what_a_rank_kept_in_an_earlier_version_is_refused(run_dir: Path, alone: Any) -> None:
    """Its metrics have other sums; the run's folder stays as it is."""
    before = (run_dir / "metrics.jsonl").read_bytes()
    (newest(run_dir) / "rank_0.pt").write_bytes(saved({"rng": {}, "windows": {}, "balance": None}))
    sign(run_dir)
    with pytest.raises(UserError, match=r"not those of format 1 to 2.*KeyError: 'since_record'"):
        go_on(alone, run_dir)
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    shutil.rmtree(run_dir / "tb", ignore_errors=True)
    evaluate_run(config_of_run(run_dir), alone, "test")


@pytest.mark.parametrize("world_size", [None, "two", {}])
def test_a_number_of_ranks_that_is_none_is_refused(
    run_dir: Path, alone: Any, world_size: object
) -> None:
    folder = newest(run_dir)
    manifest = read_manifest(folder)
    about = {**manifest.about, "world_size": world_size}
    write_manifest(folder, manifest._replace(about=about))
    with pytest.raises(UserError, match=r"not those of format 1 to 2"):
        go_on(alone, run_dir)
