"""The study of regimes: made of resumable comparisons, with gains of pairs."""

import json
from pathlib import Path
from typing import Any

import pytest
from regimes import CONFIG, MODELS, RULES, WORLDS, main, with_gains
from regimes_map import heat_map, text_of

from stem_torchrec.errors import UserError

TINY = [
    *("--worlds", "partly_shared", "--models", "single_task", "stem_net_without_stop_gradient"),
    *("--rules", "multi_balance@experts", "--seeds", "1"),
    *("--data", "train_rows=600", "valid_rows=200", "test_rows=200", "num_users=30"),
    *("num_items=20", "--set", "train.max_steps=2", "train.batch_size=256"),
    "distributed.device=cpu",
]


def test_the_study_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--out", str(tmp_path), *TINY])
    result = json.loads((tmp_path / "regimes.json").read_text())
    unfit, balanced = result["cells"]
    assert "single_task" in unfit["left_out"]
    assert balanced["failures"] == []
    assert set(balanced["figures"]["auc_mean"]) == {"0"}
    assert set(result["worlds"]["partly_shared"]["best"]["auc"]) == {"click", "like"}
    assert (tmp_path / "regimes.png").stat().st_size > 0
    [config] = [file.read_text() for file in tmp_path.rglob("config.yaml")]
    assert "stop_gradient: false" in config
    assert "boundary: experts" in config

    capsys.readouterr()
    main(["--out", str(tmp_path), *TINY])
    assert capsys.readouterr().out.count("there already") == 1
    assert json.loads((tmp_path / "regimes.json").read_text())["cells"] == result["cells"]
    with pytest.raises(UserError, match="other options"):
        main(["--out", str(tmp_path), *TINY, "--data", "train_rows=601"])


def cell(model: str, **auc: float) -> dict[str, Any]:
    figures = {"auc_mean": {seed.removeprefix("seed"): value for seed, value in auc.items()}}
    return {
        "world": "rare",
        "model": model,
        "rule": "equal",
        "left_out": None,
        "failures": [],
        "figures": figures if auc else {},
    }


def test_gains_are_of_the_same_seed(tmp_path: Path) -> None:
    cells = with_gains(
        [cell("single_task", seed0=0.5, seed1=0.75), cell("mmoe", seed1=0.875), cell("ple")]
    )
    assert [c["figures"].get("gain_mean") for c in cells] == [{"0": 0, "1": 0}, {"1": 0.125}, None]
    assert [text_of(c) for c in cells] == ["+0.0000 ± 0.0000", "+0.1250", "x"]
    heat_map(cells, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 0


def test_an_unknown_name_is_refused_with_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, names in (("--worlds", WORLDS), ("--models", MODELS), ("--rules", RULES)):
        with pytest.raises(SystemExit, match="2"):
            main(["--out", str(tmp_path), option, "flat"])
        message = capsys.readouterr().err
        assert all(name in message for name in ("flat", *names))
    assert CONFIG.is_file()
