"""Figures per combination, checked by hand."""

from pathlib import Path

import pytest

from stem_torchrec.analysis.compare.plan import Combination
from stem_torchrec.analysis.compare.results import (
    Parameters,
    Row,
    best,
    count_parameters,
    figures_of,
    reference_of,
    summarize,
)
from stem_torchrec.analysis.spread import Spread
from stem_torchrec.config.reading import load_config
from stem_torchrec.runs.records import last_test, read_records
from tests.analysis.comparison import TRAIN, of_test_split, planned, write_run
from tests.support.prepared import small_config, small_data

SINGLE, STEM = Combination("single_task", "equal"), Combination("stem_net", "equal")
BALANCED = Combination("stem_net", "mgda")
SIZES = dict.fromkeys([SINGLE, STEM, BALANCED], Parameters(3, 4))


def auc(a: float, b: float) -> dict[str, float]:
    return {"auc/a": a, "auc/b": b, "auc_mean": (a + b) / 2}


def row(rows: list[Row], combination: Combination) -> Row:
    (found,) = (row for row in rows if row.combination == combination)
    return found


def test_figures_of_a_run() -> None:
    valid = of_test_split(a=0.1, b=0.1) | {"split": "valid"}
    late = TRAIN | {"qps_total": None, "peak_memory_bytes": 1200}
    records = [TRAIN, valid, late, of_test_split(a=0.2, b=0.2), of_test_split(a=0.7, b=0.5)]
    figures = figures_of(records)
    assert figures == pytest.approx(
        {
            "logloss/a": 0.3,
            "logloss/b": 0.5,
            "ne/a": 1.3,
            "ne/b": 1.5,
            "auc/a": 0.7,
            "auc/b": 0.5,
            "auc_mean": 0.6,
            "qps": 100.0,
            "peak_memory_bytes": 1200,
        }
    )


def test_undefined_figures_are_left_out() -> None:
    record = of_test_split(a=0.7, b=0.5)
    record["auc"]["b"] = None
    figures = figures_of([{"kind": "train", "qps_total": None}, record])
    assert "auc/b" not in figures
    assert "qps" not in figures
    assert "peak_memory_bytes" not in figures
    assert figures["ne/b"] == 1.5


def test_cut_off_line_is_no_record(tmp_path: Path) -> None:
    run = planned(tmp_path)
    assert read_records(run.dir) == []
    write_run(run, TRAIN, of_test_split(a=0.7))
    file = run.dir / "metrics.jsonl"
    file.write_text(file.read_text()[:-10])
    assert last_test(read_records(run.dir)) is None
    with file.open("a") as lines:
        lines.write("\n" + '{"kind": "eval", "split": "test", "step": 9}\n')
    assert last_test(read_records(run.dir)) == {"kind": "eval", "split": "test", "step": 9}


def test_mean_and_sample_standard_deviation_over_seeds() -> None:
    results = {STEM: {0: {"qps": 10.0}, 1: {"qps": 20.0}, 2: {"qps": 60.0}}}
    (found,) = summarize(results, SIZES)
    assert found.figures["qps"].mean == 30
    assert found.figures["qps"].std == pytest.approx(700**0.5)
    assert found.seeds == [0, 1, 2]


def test_one_seed_has_no_spread() -> None:
    (found,) = summarize({STEM: {0: {"qps": 10.0}}}, SIZES)
    assert found.figures["qps"] == Spread((10.0,))
    assert found.figures["qps"].std is None


def test_gain_is_paired_by_seed_and_averaged_over_tasks() -> None:
    results = {
        SINGLE: {0: auc(0.60, 0.70), 1: auc(0.62, 0.66)},
        STEM: {0: auc(0.64, 0.72), 1: auc(0.68, 0.64)},
    }
    rows = summarize(results, SIZES)
    figures = row(rows, STEM).figures
    assert figures["gain/a"].values == pytest.approx((0.04, 0.06))
    assert figures["gain/a"].mean == pytest.approx(0.05)
    assert figures["gain/a"].std == pytest.approx(0.02 / 2**0.5)
    assert figures["gain/b"].mean == pytest.approx(0.0)
    assert figures["gain_mean"].values == pytest.approx((0.03, 0.02))
    assert figures["difference"].values == pytest.approx((0.03, 0.02))
    assert figures["difference"].std == pytest.approx(0.01 / 2**0.5)
    assert row(rows, SINGLE).figures.keys() == {"auc/a", "auc/b", "auc_mean"}


def test_seeds_that_failed_make_no_pair() -> None:
    results = {
        SINGLE: {1: auc(0.6, 0.6)},
        STEM: {0: auc(0.9, 0.9), 1: auc(0.7, 0.7)},
        BALANCED: {},
    }
    rows = summarize(results, SIZES)
    assert row(rows, STEM).figures["gain_mean"].values == pytest.approx((0.1,))
    assert row(rows, STEM).figures["auc_mean"].values == pytest.approx((0.9, 0.7))
    assert row(rows, BALANCED).figures == {}
    assert row(rows, BALANCED).seeds == []


def test_without_single_task_the_first_combination_is_the_reference() -> None:
    results = {STEM: {0: auc(0.6, 0.6)}, BALANCED: {0: auc(0.5, 0.6)}}
    figures = row(summarize(results, SIZES), BALANCED).figures
    assert figures["difference"].mean == pytest.approx(-0.05)
    assert "gain_mean" not in figures
    assert "gain/a" not in figures


def test_reference_has_the_same_varied_settings() -> None:
    small, large = (("embedding.dim", "4"),), (("embedding.dim", "8"),)
    singles = [SINGLE._replace(varied=small), SINGLE._replace(varied=large)]
    stem = STEM._replace(varied=large)
    assert reference_of(stem, [*singles, stem]) == singles[1]
    assert reference_of(stem, [singles[0], stem]) is None
    assert reference_of(stem, [BALANCED, stem]) == BALANCED


def test_best_is_one_unless_exactly_tied() -> None:
    assert best([0.7, None, 0.9, 0.8], higher=True) == {2}
    assert best([0.7, None, 0.9, 0.8], higher=False) == {0}
    assert best([0.7, 0.9, 0.9], higher=True) == {1, 2}
    assert best([0.9, 0.9 + 1e-12], higher=True) == {1}
    assert best([0.9, None], higher=True) == set()
    assert best([], higher=True) == set()


def test_parameters_of_stem_net(tmp_path: Path) -> None:
    """By hand: 37 inputs per owner (9 sparse features of D 4, one dense feature)."""
    data = small_data(tmp_path / "data")
    config = load_config(small_config(tmp_path / "c.yaml", data, tmp_path / "run"))
    sizes = [51, 41, *[20] * 6, 61]
    experts = 3 * (37 * 16 + 16 + 16 * 8 + 8)
    gates = 2 * (74 * 8 + 8 + 8 * 3 + 3)
    towers = 2 * (8 * 8 + 8 + 8 + 1)
    found = count_parameters(config)
    assert found == Parameters(tables=3 * 4 * sum(sizes), dense=experts + gates + towers)
    assert found.total == found.tables + found.dense
