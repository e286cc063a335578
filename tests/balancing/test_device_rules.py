"""UPGrad, IMTL-G, Aligned-MTL, Nash-MTL, FairGrad: against TorchJD and against their conditions."""

import pytest
import torch
from torch import Tensor

from stem_torchrec.balancing.fair_weights import fair_weights
from stem_torchrec.balancing.nonnegative import minimize_nonnegative
from stem_torchrec.balancing.rule import Rule, balance
from stem_torchrec.balancing.rules.aligned_mtl import AlignedMtlOptions, AlignedMtlRule
from stem_torchrec.balancing.rules.fairgrad import FairGradOptions, FairGradRule
from stem_torchrec.balancing.rules.imtl_g import ImtlGRule
from stem_torchrec.balancing.rules.nash_mtl import NashMtlRule
from stem_torchrec.balancing.rules.upgrad import UpGradRule
from tests.balancing.every_rule import EVERY_RULE
from tests.balancing.grams import KINDS, apply, gradients, gram_of, situation_of

INDEPENDENT = ("random", "aligned", "torn")


def exact(kind: str, num_tasks: int, spread: float = 3.0) -> Tensor:
    """(T, T) float64 of gradients that do not depend on each other."""
    return gram_of(gradients(kind, num_tasks, 500, spread).double())


def weights(rule: Rule, gram: Tensor) -> Tensor:
    """(T,) in float64, before ``balance`` rounds them."""
    return rule.multipliers(situation_of(gram), {}, 0)[0]


def equals(found: Tensor, expected: Tensor) -> None:
    size = expected.abs().max()
    torch.testing.assert_close(found / size, expected / size, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", INDEPENDENT)
@pytest.mark.parametrize("num_tasks", [2, 3, 8])
@pytest.mark.parametrize(
    ("rule", "name", "options"),
    [
        (UpGradRule(), "UPGrad", {}),
        (ImtlGRule(), "IMTLG", {}),
        *(
            (AlignedMtlRule(AlignedMtlOptions(scale_mode=mode)), "AlignedMTL", {"scale_mode": mode})
            for mode in ("min", "median", "rmse")
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_equals_torchjd(rule, name, options, num_tasks, kind):
    torchjd = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")
    if name == "UPGrad":
        pytest.importorskip("quadprog", reason="TorchJD's UPGrad needs quadprog")
    gram = exact(kind, num_tasks)
    equals(weights(rule, gram), getattr(torchjd, f"{name}Weighting")(**options)(gram))


@pytest.mark.parametrize("kind", KINDS)
def test_upgrad_equals_torchjd_where_gradients_depend_on_each_other(kind):
    torchjd = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")
    pytest.importorskip("quadprog", reason="TorchJD's UPGrad needs quadprog")
    gram = gram_of(gradients(kind, 6, 3, 10.0).double())
    equals(weights(UpGradRule(), gram), torchjd.UPGradWeighting()(gram))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("num_tasks", [2, 8])
def test_fairgrad_equals_torchjd(num_tasks, alpha):
    torchjd = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")
    gram = exact("torn", num_tasks) / 500
    ours = weights(FairGradRule(FairGradOptions(fairgrad_alpha=alpha)), gram)
    equals(ours, torchjd.FairGradWeighting(alpha)(gram))


@pytest.mark.parametrize("spread", [1.0, 1e3])
@pytest.mark.parametrize("power", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("num_tasks", [1, 2, 8, 33])
def test_fair_weights_fulfil_their_condition(num_tasks, power, spread):
    for kind in INDEPENDENT if num_tasks > 1 else INDEPENDENT[:1]:
        gram = gram_of(gradients(kind, num_tasks, 500, spread).double()) / 500
        found = fair_weights(gram, torch.ones(num_tasks, dtype=torch.bool), power)
        condition = (gram @ found) * found**power
        tolerance = 1e-4 if spread == 1 else 1e-3
        torch.testing.assert_close(condition, torch.ones_like(found), rtol=0, atol=tolerance)


def test_nash_golden():
    """Gradients at right angles get weights 1 / n, times √‖G‖."""
    gram = torch.diag(torch.tensor([1.0, 4.0, 16.0])).double()
    expected = gram.norm().sqrt() / torch.tensor([1.0, 2.0, 4.0]).double()
    torch.testing.assert_close(weights(NashMtlRule(), gram), expected, rtol=2e-6, atol=0)


def test_imtl_g_has_equal_projections():
    gram = exact("torn", 5, 30.0)
    found = weights(ImtlGRule(), gram)
    projections = gram @ found / gram.diagonal().sqrt()
    torch.testing.assert_close(projections, projections[0].expand(5), rtol=1e-8, atol=0)
    assert float(found.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("num_tasks", [2, 8])
def test_upgrad_conflicts_with_no_task(num_tasks):
    """Up to what the ridge moves."""
    gram = exact("torn", num_tasks)
    found = weights(UpGradRule(), gram)
    assert (gram @ found >= -1e-3 * gram.trace() * found.max()).all()
    assert (found >= 1 / num_tasks - 1e-9).all()


@pytest.mark.parametrize("spread", [1.0, 1e3])
@pytest.mark.parametrize("kind", KINDS)
def test_nonnegative_program_fulfils_the_kkt_conditions(kind, spread):
    gram = gram_of(gradients(kind, 7, 4, spread).double())
    matrix = gram / gram.trace() + 1e-4 * torch.eye(7).double()
    linear = torch.eye(7).double() @ matrix
    x = minimize_nonnegative(matrix, linear)
    slack = x @ matrix + linear
    assert x.min() >= 0
    assert slack.min() >= -1e-12
    assert (x * slack).abs().max() <= 1e-12


@pytest.mark.parametrize("alpha", [0.5, 2.0])
@pytest.mark.parametrize("factor", [2.0**-10, 2.0**10])
def test_fairgrad_follows_a_common_scale(alpha, factor):
    rule = FairGradRule(FairGradOptions(fairgrad_alpha=alpha))
    gram = exact("torn", 4)
    expected = weights(rule, gram) * factor ** (-2 * alpha / (1 + alpha))
    torch.testing.assert_close(weights(rule, gram * factor**2), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["upgrad", "imtl_g", "aligned_mtl", "nash_mtl", "fairgrad"])
def test_absent_task_is_as_if_it_did_not_exist(name):
    rule, gram = EVERY_RULE[name](5), exact("torn", 5)
    labelled = torch.tensor([True, False, True, True, True])
    found = balance(rule, gram, torch.ones(5), {}, 0, labelled=labelled).multipliers
    alone = apply(EVERY_RULE[name](4), gram[labelled][:, labelled]).multipliers
    assert found[1] == 0
    torch.testing.assert_close(found[labelled], alone, rtol=1e-5, atol=1e-7)


def test_opposed_gradients_have_weights():
    gram = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert apply(ImtlGRule(), gram).multipliers.tolist() == [0.5, 0.5]
    nash = apply(NashMtlRule(), gram)
    assert not nash.fallback
    assert nash.multipliers[0] == pytest.approx(float(nash.multipliers[1]))
