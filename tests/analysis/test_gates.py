"""``analyze gates`` end to end, and its sums over groups."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from stem_torchrec.analysis.gates import analyse, gate_table, group_shares
from stem_torchrec.analysis.runs import Model, read_runs
from stem_torchrec.cli import main
from stem_torchrec.distributed.ranks import start_ranks, stop_ranks
from stem_torchrec.errors import UserError
from stem_torchrec.training.finished_run import MeanGates, open_run
from stem_torchrec.training.session import open_split

PLACE = "stack.blocks.0.gates"


@pytest.fixture(scope="module")
def out(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gates")
    runs = [str(finished / name) for name in ("both", "both_1", "plain")]
    assert main(["analyze", "gates", "--runs", *runs, "--out", str(out)]) == 0
    assert not dist.is_initialized()
    return out


def weights_by_hand(finished: Path) -> np.ndarray:
    """(T, K): the gates of ``both`` on every test row, called by themselves."""
    run = read_runs("--runs", [finished / "both"])[0]
    ranks = start_ranks(run.config.distributed)
    try:
        session, _ = open_run(run.config, ranks)
        recommender = session.recommender
        weights = []
        with torch.no_grad():
            for batch in open_split(session, "test").epoch(0):
                pooled = recommender.embeddings(batch.sparse)
                shared = torch.cat([pooled["shared"], batch.dense], dim=1)
                own = [torch.cat([pooled[t], batch.dense, shared], dim=1) for t in run.tasks]
                weights.append(recommender.model.stack.blocks[0].gates(torch.stack(own)))
        return torch.cat(weights, dim=1).double().mean(dim=1).numpy()
    finally:
        stop_ranks()


def test_figures_are_the_mean_over_the_test_rows(out: Path, finished: Path) -> None:
    data = json.loads((out / "gates.json").read_text())
    gates = {(g["model"], g["name"]): g for g in data["gates"]}
    assert len(gates) == 4
    assert {g["place"] for g in gates.values()} == {PLACE}
    by_hand = weights_by_hand(finished)
    both = next(model for model, _ in gates if "all" in model)
    for index, task in enumerate(("click", "like")):
        shares = gates[both, task]["shares"]
        assert list(shares) == ["shared", "click", "like"]
        found = [share["values"][0] for share in shares.values()]
        np.testing.assert_allclose(found, by_hand[index], atol=1e-6)
        assert all(len(share["values"]) == 2 for share in shares.values())
        for seed in range(2):
            assert sum(share["values"][seed] for share in shares.values()) == pytest.approx(1)


def test_the_report_is_written(out: Path) -> None:
    text = (out / "gates.md").read_text()
    assert "| model | gates | gate | shared | click | like |" in text
    assert (out / "gates_1.png").is_file()
    assert "test split" in text


def test_shares_sum_a_groups_experts() -> None:
    gates = MeanGates(("a", "b"), ("shared", "shared", "own"), np.array([[1, 2, 3], [4, 5, 6]]))
    assert group_shares(gates, 0) == {"shared": 3, "own": 3}
    assert group_shares(gates, 1) == {"shared": 9, "own": 6}


def test_models_with_other_groups_share_a_table(finished: Path) -> None:
    runs = read_runs("--runs", [finished / "both", finished / "plain"])
    models = [Model(name, (run,)) for name, run in zip("xy", runs, strict=True)]
    groups = {"both": ("shared", "own"), "plain": ("expert_0", "shared")}
    table = gate_table(
        analyse(
            models,
            lambda run: {"g": MeanGates(("all",), groups[run.path.name], np.array([[0.25, 0.75]]))},
        )
    )
    assert table.columns == ["model", "gates", "gate", "shared", "own", "expert_0"]
    assert table.rows == [
        ["x", "g", "all", "0.2500", "0.7500", ""],
        ["y", "g", "all", "0.7500", "", "0.2500"],
    ]


def test_a_model_without_gates_is_the_users_error(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--runs", str(finished / "single"), "--out", str(tmp_path)]
    assert main(["analyze", "gates", *options]) == 2
    assert "single_task, without gates" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_gates_of_nothing(finished: Path) -> None:
    run = read_runs("--runs", [finished / "both"])[0]
    with pytest.raises(UserError, match="without gates"):
        analyse([Model("x", (run,))], lambda _: {})
