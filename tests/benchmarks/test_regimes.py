"""The study of regimes: goes on where it stopped, with gains of pairs."""

import json
from pathlib import Path
from typing import Any

import pytest
from regimes import CONFIG, cell_record, main, with_gains
from regimes_grid import MODELS, RULES, WORLDS, Cell, trainings
from regimes_map import heat_map, text_of

from stem_torchrec.errors import UserError

TINY = [
    *("--worlds", "partly_shared", "--models", "single_task", "stem_net_without_stop_gradient"),
    *("--seeds", "1", "--processes", "0"),
    *("--data", "train_rows=600", "valid_rows=200", "test_rows=200", "num_users=30"),
    *("num_items=20", "--set", "train.max_steps=2", "train.batch_size=256"),
]


def test_the_study_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, rules = ["--out", str(tmp_path)], ["--rules", "equal", "multi_balance@experts", "static"]
    main([*out, *TINY, *rules[:2]])
    assert capsys.readouterr().out.count(" of 2: ") == 2
    main([*out, *TINY, *rules])
    result = json.loads((tmp_path / "regimes.json").read_text())
    assert capsys.readouterr().out.count(" of 4: ") == 4
    cells = {(cell["model"], cell["rule"]): cell for cell in result["cells"]}
    assert [cell["failures"] for cell in result["cells"]] == [[]] * 6
    assert "share nothing" in cells["single_task", "static"]["left_out"]
    balanced = cells["stem_net_without_stop_gradient", "multi_balance@experts"]["figures"]
    assert set(balanced["auc_mean"]) == {"0"}
    assert balanced["gain_mean"]["0"] == (
        balanced["auc_mean"]["0"] - cells["single_task", "equal"]["figures"]["auc_mean"]["0"]
    )
    assert "balance/cosine/1" in balanced
    assert set(result["worlds"]["partly_shared"]["best"]["0"]["auc"]) == {"click", "follow", "like"}
    assert (tmp_path / "regimes.png").stat().st_size > 0

    main([*out, *TINY, *rules])
    assert " of " not in capsys.readouterr().out
    assert json.loads((tmp_path / "regimes.json").read_text()) == result
    with pytest.raises(UserError, match="other options"):
        main([*out, *TINY, "--data", "train_rows=601"])
    with pytest.raises(UserError, match=r"model\.widths"):
        main([*out, *TINY, "--set", "model.widths=3"])


def test_what_tells_most_is_trained_first() -> None:
    found = trainings(WORLDS, list(MODELS), list(RULES), num_seeds=2)
    assert len({training.key for training in found}) == len(found) == 7 * 2 * (1 + 5 * 7)
    assert [training.cell.world for training in found[:7]] == list(WORLDS)
    of_first = found[: 7 * 9]
    assert {t.seed for t in of_first} == {0}
    assert {t.cell.rule for t in of_first} == set(RULES) - {"mgda@parameters", "static"}
    keys = found[-1].settings
    assert (keys["balance.rule"], keys["balance.weights"]) == ("static", "[0.5, 0.5, 2]")


def line(valid: float, test: float) -> dict[str, Any]:
    figures = {"epoch": 1, "auc": {}, "ne": {}, "calibration": {}}
    return {"best": {"valid": {"auc_mean": valid}, "test": {"auc_mean": test, **figures}}}


def test_the_point_of_the_grid_is_chosen_on_the_valid_split() -> None:
    cell = Cell("rare", "mmoe", "static")
    of_cell = trainings(["rare"], ["mmoe"], ["static"], 2)
    first, second, _ = RULES["static"]
    lines = {f"rare mmoe {first} seed{seed}": line(0.7, 0.6) for seed in (0, 1)}
    lines[f"rare mmoe {second} seed0"] = line(0.6, 0.9)
    record = cell_record(cell, of_cell, lines, [])
    assert record["chosen"] == first
    assert record["figures"]["auc_mean"] == {"0": 0.6, "1": 0.6}
    assert f"rare mmoe {second} seed1: not trained yet" in record["failures"]

    equal = {"valid_auc_mean": {"0": 0.8, "1": 0.8}, "auc_mean": {"0": 0.5, "1": 0.5}}
    before = [{"model": "mmoe", "rule": "equal", "figures": equal}]
    assert cell_record(cell, of_cell, lines, before)["chosen"] == "equal"


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
