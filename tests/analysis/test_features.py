"""``analyze features`` end to end, and its figures of each seed and repetition."""

import json
from pathlib import Path

import pytest
import torch.distributed as dist

from stem_torchrec.analysis.features import analyse, chosen_features
from stem_torchrec.analysis.runs import Model, read_runs
from stem_torchrec.cli import main
from stem_torchrec.errors import UserError
from stem_torchrec.runs.records import last_test, read_records
from stem_torchrec.training.permutation import Permuted

NAMES = ("user_id", "item_id")


@pytest.fixture(scope="module")
def out(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    runs = [str(finished / name) for name in ("both", "both_1")]
    options = ["--features", ",".join(NAMES), "--repeats", "2", "--out", str(out)]
    assert main(["analyze", "features", "--runs", *runs, *options]) == 0
    assert not dist.is_initialized()
    return out


def test_every_task_has_a_figure_per_seed_and_repetition(out: Path) -> None:
    rows = json.loads((out / "features.json").read_text())["features"]
    assert {(row["task"], row["feature"]) for row in rows} == {
        (task, name) for task in ("click", "like") for name in NAMES
    }
    for row in rows:
        for name in ("auc_lost", "ne_gained"):
            assert len(set(row[name]["values"])) == 4
    assert max(row["ne_gained"]["mean"] for row in rows) > 0
    assert (out / "features_1.png").is_file()
    assert "| model | task | feature | AUC lost | NE gained |" in (out / "features.md").read_text()


def test_what_is_as_it_is_equals_the_test_record(finished: Path) -> None:
    from stem_torchrec.cli.workers import features_worker

    (run,) = read_runs("--runs", [finished / "both"])
    found = features_worker(run.config, "test", [], 1)
    record = last_test(read_records(run.path))
    assert record is not None
    for name in ("auc", "ne"):
        assert found.as_it_is[name] == pytest.approx(record[name], rel=1e-6)


def test_signs_and_order(finished: Path) -> None:
    def metrics(auc: float | None, ne: float) -> dict[str, dict[str, float | None]]:
        return {name: dict.fromkeys(("click", "like"), v) for name, v in (("auc", auc), ("ne", ne))}

    (run,) = read_runs("--runs", [finished / "both"])
    by_feature = {"a": [metrics(0.7, 0.9)], "b": [metrics(0.5, 1.1), metrics(None, 1.2)]}
    found = analyse([Model("x", (run,))], lambda _: Permuted(metrics(0.75, 0.8), by_feature))
    assert [(one.task, one.feature) for one in found] == [
        *(("click", "b"), ("click", "a"), ("like", "b"), ("like", "a"))
    ]
    assert found[0].auc_lost.values == pytest.approx((0.25, None))
    assert found[0].ne_gained.values == pytest.approx((0.3, 0.4))


@pytest.mark.parametrize("names", [["user_id", "colour"], ["user_id", "user_id"]])
def test_features_that_cannot_be_permuted_are_named(finished: Path, names: list[str]) -> None:
    runs = read_runs("--runs", [finished / "both"])
    with pytest.raises(UserError, match=r"--features: '(colour|user_id)' is (not|given)"):
        chosen_features(runs, names)
    assert chosen_features(runs, None)[:1] == [runs[0].schema.features[0].name]


def test_no_repetition_is_the_users_error(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--runs", str(finished / "both"), "--repeats", "0", "--out", str(tmp_path)]
    assert main(["analyze", "features", *options]) == 2
    assert "--repeats: 0; allowed: at least 1" in capsys.readouterr().err
