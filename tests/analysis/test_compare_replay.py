"""Comparing over days: the command end to end."""

import json
from pathlib import Path
from statistics import mean

import pytest

from stem_torchrec.cli import main
from stem_torchrec.training.finished_run import unfinished_replay
from tests.support.prepared import small_config, small_data


def test_combinations_are_compared_over_days(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = small_data(tmp_path / "data", world="drift", days=3, train_rows=600)
    config = small_config(tmp_path / "c.yaml", data, tmp_path / "unused")
    words = ["compare", "--config", str(config), "--models", "stem_net", "--seeds", "1"]
    words += ["--out", str(tmp_path / "out")]
    assert main([*words, "--replay", "2024-01-03"]) == 2
    assert "expected FIRST:LAST of at least two days" in capsys.readouterr().err
    words += ["--replay", "2024-01-01:2024-01-03"]
    assert main(words) == 0
    run_dir = tmp_path / "out" / "runs" / "stem_net-equal-seed0"
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    days = [record for record in map(json.loads, lines) if record["kind"] == "day"]
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["rows"][0]["auc_mean"]["mean"] == mean(day["auc_mean"] for day in days[1:])
    assert found["rows"][0]["ne"]["click"]["mean"] == mean(day["ne"]["click"] for day in days[1:])
    by_day = {day["day"]: day["auc_mean"] for day in days[1:]}
    assert {d: auc["mean"] for d, auc in found["over_days"]["stem_net equal"].items()} == by_day
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "Figures are of the days 2024-01-01:2024-01-03 but for the first" in text
    assert "## Days" in text

    capsys.readouterr()
    assert main(words) == 0
    assert "there already" in capsys.readouterr().err
    newest = max((run_dir / "checkpoints").iterdir(), key=lambda f: int(f.name.split("_")[1]))
    (newest / "manifest.json").unlink()
    assert unfinished_replay(run_dir) == "it is through 2 of its 3 days"
