"""Rules that read losses alone: over many steps as TorchJD's, and what a missing task leaves."""

import math

import pytest
import torch
from torch import Tensor

from stem_torchrec.balancing.rule import Rule, balance
from stem_torchrec.balancing.rules.db_mtl import DbMtlRule
from stem_torchrec.balancing.rules.dwa import DwaOptions, DwaRule
from stem_torchrec.balancing.rules.famo import FamoOptions, FamoRule
from stem_torchrec.balancing.rules.imtl_l import ImtlLOptions, ImtlLRule
from stem_torchrec.balancing.rules.rlw import RlwRule
from stem_torchrec.balancing.rules.stch import StchOptions, StchRule
from stem_torchrec.balancing.rules.uncertainty import UncertaintyOptions, UncertaintyRule
from tests.balancing.every_rule import EVERY_RULE
from tests.balancing.grams import apply, gradients, gram_of

NUM_TASKS, NUM_STEPS = 3, 12
EQUAL_GRAM = torch.eye(NUM_TASKS, dtype=torch.float64)


def losses_of(steps: int = NUM_STEPS) -> Tensor:
    """(steps, T) float64 that fall at different speeds from different heights."""
    generator = torch.Generator().manual_seed(1)
    fall = torch.arange(steps).double().unsqueeze(1) * torch.tensor([0.02, 0.2, 0.0])
    noise = torch.rand(steps, NUM_TASKS, generator=generator, dtype=torch.float64)
    return torch.tensor([0.7, 3.0, 0.05]) * (-fall).exp() * (0.9 + 0.2 * noise)


def multipliers_of(rule: Rule, losses: Tensor) -> Tensor:
    """(steps, T) float64 as a run would have them."""
    state, found = rule.initial_state(losses.shape[1]), []
    for step, now in enumerate(losses):
        result = balance(rule, EQUAL_GRAM, now, state, step)
        state = result.state
        found.append(result.multipliers.double())
    return torch.stack(found)


def weights_in(scalarizer, losses: Tensor) -> Tensor:
    """The derivative of the one value by each loss."""
    losses = losses.clone().requires_grad_()
    return torch.autograd.grad(scalarizer(losses), losses)[0]


@pytest.fixture(name="theirs")
def theirs_():
    return pytest.importorskip("torchjd.scalarization", reason="TorchJD is not installed")


def is_close(found: Tensor, expected: list[Tensor]) -> None:
    torch.testing.assert_close(found, torch.stack(expected).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (UncertaintyRule(UncertaintyOptions(lr=0.1)), "UW"),
        (ImtlLRule(ImtlLOptions(lr=0.1)), "IMTLL"),
    ],
)
def test_learned_scales_equal_torchjds_with_adam(theirs, rule, name):
    scalarizer = getattr(theirs, name)(NUM_TASKS).double()
    adam = torch.optim.Adam(scalarizer.parameters(), lr=0.1)
    expected = []
    for losses in losses_of():
        expected.append(weights_in(scalarizer, losses))
        adam.zero_grad()
        scalarizer(losses).backward()
        adam.step()
    is_close(multipliers_of(rule, losses_of()), expected)


def test_famo_equals_torchjds_whose_update_sees_the_next_batch(theirs):
    scalarizer = theirs.FAMO(NUM_TASKS, lr=0.1, weight_decay=0.01).double()
    expected = []
    for step, losses in enumerate(losses_of()):
        if step:
            scalarizer.update(losses)
        expected.append(weights_in(scalarizer, losses))
    is_close(multipliers_of(FamoRule(FamoOptions(lr=0.1, logit_decay=0.01)), losses_of()), expected)


def test_dwa_equals_torchjds_with_a_window_as_its_epoch(theirs):
    scalarizer = theirs.DWA(temperature=0.5)
    expected = []
    for step, losses in enumerate(losses_of()):
        expected.append(weights_in(scalarizer, losses))
        if step % 3 == 2:
            scalarizer.step()
    found = multipliers_of(DwaRule(DwaOptions(temperature=0.5, window=3)), losses_of())
    is_close(found, expected)
    assert (found[:6] == 1).all()
    assert not torch.allclose(found[6], found[9])


@pytest.mark.parametrize("mu", [0.01, 1.0])
def test_stch_equals_torchjds(theirs, mu):
    expected = [weights_in(theirs.STCH(mu), losses) for losses in losses_of()]
    is_close(multipliers_of(StchRule(StchOptions(mu=mu)), losses_of()), expected)


def test_rlw_equals_torchjds_drawn_by_step(theirs):
    expected = []
    for step, losses in enumerate(losses_of()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7 + step)
            expected.append(weights_in(theirs.Random(), losses))
    is_close(multipliers_of(RlwRule(seed=7), losses_of()), expected)


def test_db_mtl_golden():
    """h = (4/2, 9/1): both as long as 9, in the direction of the logarithm's gradient."""
    gram, losses = torch.diag(torch.tensor([16.0, 81.0])), torch.tensor([2.0, 1.0])
    found = apply(DbMtlRule(), gram, losses=losses).multipliers
    torch.testing.assert_close(found, torch.tensor([9.0 / 2.0 / 2.0, 1.0]))


@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_db_mtl_does_not_see_the_scale_of_a_loss(scale):
    """A loss and its gradient c times as large: the multiplier is c times smaller."""
    rows, losses = gradients("torn", 3, 20), torch.tensor([0.7, 0.2, 0.4])
    before = apply(DbMtlRule(), gram_of(rows), losses=losses).multipliers
    factors = torch.tensor([1.0, scale, 1.0])
    gram = gram_of(rows * factors.unsqueeze(1))
    after = apply(DbMtlRule(), gram, losses=losses * factors).multipliers
    torch.testing.assert_close(after * factors, before, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l", "famo", "dwa"])
def test_absent_task_goes_on_as_if_there_had_been_no_step(name):
    """Task 1 misses two steps in the middle; its state waits."""
    rule, losses = EVERY_RULE[name](NUM_TASKS), losses_of()
    state = rule.initial_state(NUM_TASKS)
    for step, now in enumerate(losses[:6]):
        labelled = torch.tensor([True, step not in (3, 4), True])
        before = state
        found = balance(rule, EQUAL_GRAM, now, state, step, labelled=labelled)
        state = found.state
        assert (found.multipliers[1] == 0) == (step in (3, 4))
        for key, value in state.items():
            if step in (3, 4):
                assert torch.equal(value[1], before[key][1])
    if "mean" in state:
        assert state["steps"].tolist() == ([5, 3, 5] if name == "famo" else [6, 4, 6])


def test_dwa_waits_until_a_task_has_two_windows_of_its_own():
    rule = DwaRule(DwaOptions(window=1, temperature=1.0))
    state = rule.initial_state(2)
    for losses, labelled in [((1.0, 1.0), (1, 1)), ((2.0, 9.0), (1, 0)), ((2.0, 9.0), (1, 1))]:
        seen = torch.tensor(labelled, dtype=torch.bool)
        now = torch.tensor(losses)
        found = balance(rule, torch.eye(2), now, state, 0, labelled=seen)
        state = found.state
    share = math.exp(2.0) / (math.exp(2.0) + math.exp(1.0))
    torch.testing.assert_close(found.multipliers, torch.tensor([2 * share, 2 - 2 * share]))


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l"])
def test_learned_scales_make_the_weighted_losses_alike(name):
    rule = type(EVERY_RULE[name](3))
    losses = torch.tensor([0.7, 3.0, 0.05]).double().expand(1500, 3)
    weighted = multipliers_of(rule(), losses)[-1] * losses[-1]
    torch.testing.assert_close(weighted, weighted[0].expand(3), rtol=0.05, atol=0)
