"""Which of a run's checkpoints an analysis reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stem_torchrec.cli import main
from tests.support.prepared import small_config, small_data

TESTED, LAST = 5, 10
PAIR = ("--tasks", "click,like", "--single", "SINGLE", "--runs", "SINGLE")
ANALYSES: dict[str, Sequence[str]] = {
    "negative-transfer": PAIR,
    "preference": PAIR,
    "gates": ("--runs", "RUN"),
    "collapse": ("--runs", "RUN"),
    "features": ("--runs", "RUN", "--repeats", "1", "--features", "user_id"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with checkpoints of two steps, whose test records are of the older one."""
    folder = tmp_path_factory.mktemp("chosen")
    data = small_data(folder / "data")
    for name, model in (("RUN", "stem_net"), ("SINGLE", "single_task")):
        config = small_config(folder / f"{name}.yaml", data, folder / name)
        options = ["--train.max_steps", str(LAST), "--checkpoint.every", str(TESTED)]
        assert main(["train", "--config", str(config), "--model.name", model, *options]) == 0
        file = folder / name / "metrics.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            if record.get("split") == "test":
                record["step"] = TESTED
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def figures(folder: Path, out: Path, analysis: str, *options: str) -> Any:
    """What the analysis' JSON file has."""
    given = [str(folder / o) if o in ("RUN", "SINGLE") else o for o in ANALYSES[analysis]]
    assert main(["analyze", analysis, *given, *options, "--out", str(out)]) == 0
    return json.loads((out / f"{analysis.replace('-', '_')}.json").read_text())


@pytest.mark.parametrize("analysis", ANALYSES)
def test_the_tested_one_unless_another_is_asked_for(
    folder: Path, tmp_path: Path, analysis: str
) -> None:
    found = figures(folder, tmp_path / "default", analysis)
    assert figures(folder, tmp_path / "step", analysis, "--checkpoint", str(TESTED)) == found
    assert figures(folder, tmp_path / "last", analysis, "--checkpoint", "last") != found


def test_all_of_them_only_where_that_has_a_meaning(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = figures(folder, tmp_path, "collapse", "--checkpoints", "all")["tables"]
    assert {table["step"] for table in tables} == {TESTED, LAST}
    gates = ["analyze", "gates", "--runs", str(folder / "RUN"), "--out", str(tmp_path / "new")]
    for choice, message in (
        ("7", "checkpoint 7: none of this step is whole; there are those of step 5, 10 (last)"),
        ("best", "checkpoint best: checkpoint.keep_best was not set"),
    ):
        assert main([*gates, "--checkpoint", choice]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit, match="2"):
        main([*gates, "--checkpoint", "all"])
    assert "--checkpoint: 'all' is not last, best or a step" in capsys.readouterr().err
