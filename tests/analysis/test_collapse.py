"""``analyze collapse`` end to end, and its figures on tables whose rank is known."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from stem_torchrec.analysis.collapse import (
    analyse,
    effective_rank,
    information_abundance,
    singular_values,
)
from stem_torchrec.analysis.runs import Model, read_runs
from stem_torchrec.cli import main
from stem_torchrec.training.run import load_run


def with_singular_values(values: list[float], rows: int = 100_000) -> np.ndarray:
    generator = np.random.default_rng(0)
    left, _ = np.linalg.qr(generator.normal(size=(rows, len(values))))
    right, _ = np.linalg.qr(generator.normal(size=(len(values), len(values))))
    return (left * values @ right).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "abundance", "rank"),
    [
        ([2.0, 2.0, 2.0, 2.0], 4.0, 4.0),
        ([3.0, 0.0, 0.0, 0.0], 1.0, 1.0),
        ([4.0, 2.0, 2.0, 0.0], 2.0, 2 ** (0.5 + 2 * 0.25 * 2)),
    ],
)
def test_figures_of_known_tables(values: list[float], abundance: float, rank: float) -> None:
    found = singular_values(with_singular_values(values))
    np.testing.assert_allclose(found, sorted(values), atol=1e-4)
    assert information_abundance(found) == pytest.approx(abundance, abs=1e-3)
    assert effective_rank(found) == pytest.approx(rank, abs=2e-3)


def test_a_table_of_zeros_has_no_figures() -> None:
    values = singular_values(np.zeros((5, 3), np.float32))
    assert information_abundance(values) is None
    assert effective_rank(values) is None


@pytest.fixture(scope="module")
def out(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collapse")
    runs = [str(finished / name) for name in ("both", "both_1", "plain")]
    options = ["--runs", *runs, "--checkpoints", "all", "--out", str(out)]
    assert main(["analyze", "collapse", *options]) == 0
    assert not dist.is_initialized()
    return out


def test_figures_are_those_of_the_runs_tables(out: Path, finished: Path) -> None:
    rows = json.loads((out / "collapse.json").read_text())["tables"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    assert {row["owner"] for row in rows if row["model"] == models[0]} == {
        *("shared", "click", "like")
    }
    assert {row["owner"] for row in rows if row["model"] == models[1]} == {"shared"}
    last = max(row["step"] for row in rows)
    (row,) = (
        row
        for row in rows
        if (row["model"], row["step"], row["owner"]) == (models[0], last, "like")
        and row["table"] == "user_id"
    )
    table = load_run(finished / "both").tables("user_id")["like"]["user_id"]
    assert (row["rows"], row["dim"]) == table.shape
    values = np.linalg.svd(table.astype(np.float64), compute_uv=False)
    assert row["abundance"]["values"][0] == pytest.approx(values.sum() / values.max(), rel=1e-5)
    assert len(row["abundance"]["values"]) == 2
    assert (out / "collapse_1.png").is_file()


def test_tables_in_common_count_once_and_seeds_are_put_together(finished: Path) -> None:
    runs = read_runs("--runs", [finished / "both", finished / "both_1"])
    feature = runs[0].schema.sparse[0]
    tables = {0: np.eye(3, dtype=np.float32), 1: np.diag([2.0, 1.0, 1.0]).astype(np.float32)}
    found = analyse(
        [Model("x", tuple(runs))],
        lambda run: [5, 7],
        lambda run, step: {"shared": {feature.name: tables[run.seed]}},
    )
    assert [(one.step, one.table) for one in found] == [
        (5, feature.table_name),
        (7, feature.table_name),
    ]
    assert found[0].abundance.values == pytest.approx((3.0, 2.0))


def test_unknown_run_is_the_users_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--runs", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]
    assert main(["analyze", "collapse", *options]) == 2
    assert "--runs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_of_different_data_share_no_page(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "data", tmp_path / "d")
    other = shutil.copytree(finished / "plain", tmp_path / "other")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace(str(finished / "data"), str(tmp_path / "d")))
    runs = [str(finished / "both"), str(other)]
    assert main(["analyze", "collapse", "--runs", *runs, "--out", str(tmp_path / "out")]) == 2
    assert f"{other}: data.path is {tmp_path / 'd'}, but" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
