"""A run whose precision changes: resumed, evaluated, and what its checkpoints say."""

from pathlib import Path
from typing import Any

import pytest

from stem_torchrec import checkpoint
from stem_torchrec.checkpoint.manifest import read_manifest
from stem_torchrec.cli import main as command
from stem_torchrec.config.reading import load_config
from tests.support.prepared import small_config, small_data


def test_a_run_goes_on_in_another_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    config = str(small_config(tmp_path / "c.yaml", small_data(tmp_path / "data"), run_dir))

    def precision() -> Any:
        return read_manifest(checkpoint.newest(run_dir)).about["precision"]

    assert command(["train", "--config", config, "--train.max_steps", "4"]) == 0
    assert precision() == {"train": "fp32", "embedding": "fp32", "comm": "fp32"}
    capsys.readouterr()

    lowered = ["--train.precision", "bf16", "--embedding.precision", "fp16"]
    resumed = ["train", "--config", config, "--resume", "--train.max_steps", "8", *lowered]
    assert command(resumed) == 0
    assert precision() == {"train": "bf16", "embedding": "fp16", "comm": "fp32"}
    told = [record.message for record in caplog.records if "converted" in record.message]
    assert told == [f"{run_dir / 'checkpoints/step_4'}: tables of float32 are converted to float16"]
    capsys.readouterr()
    assert load_config(run_dir / "config.yaml").embedding.precision == "fp16"

    # A CPU has no bfloat16 tables: the message says what to ask for instead.
    assert command(["evaluate", "--run", str(run_dir), "--embedding.precision", "bf16"]) == 2
    assert "allowed: fp32, fp16" in " ".join(capsys.readouterr().err.split())
    for tables in ("fp16", "fp32"):
        evaluate = ["evaluate", "--run", str(run_dir), "--embedding.precision", tables, "--json"]
        assert command(evaluate) == 0
        assert '"auc_mean": 0.' in capsys.readouterr().out


def test_tf32_on_a_cpu_is_float32_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(small_config(tmp_path / "c.yaml", small_data(tmp_path / "data"), tmp_path / "run"))
    options = ["--train.precision", "tf32", "--train.max_steps", "2"]
    assert command(["train", "--config", config, *options]) == 0
    said = capsys.readouterr()
    assert " ".join((said.out + said.err).split()).count("train.precision tf32 is of GPUs") == 1
