"""What ``balance`` does around every rule: who takes part, what stays, what falls back."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from stem_torchrec.balancing.report import balance_metrics
from stem_torchrec.balancing.rule import Rule, Situation, State, balance
from tests.balancing.every_rule import EVERY_RULE
from tests.balancing.grams import apply, gradients, gram_of

BAD = [float("nan"), float("inf")]


@pytest.fixture(params=EVERY_RULE, name="make")
def make_(request):
    return EVERY_RULE[request.param]


class Broken(Rule):
    """Gives the multipliers and the state that it is told to."""

    def __init__(self, multiplier: float, kept: float) -> None:
        self._multiplier, self._kept = multiplier, kept

    def initial_state(self, num_tasks: int, device: torch.device | None = None) -> State:
        return {"kept": torch.zeros(num_tasks, 2)}

    def multipliers(self, situation: Situation, state: State, step: int):
        full = torch.full_like(situation.losses, self._multiplier)
        return full, {"kept": torch.full_like(state["kept"], self._kept)}


def with_bad(gram: torch.Tensor, task: int, value: float) -> torch.Tensor:
    """What a gradient with ``value`` in it makes of the Gram: its whole row and column."""
    found = gram.clone()
    found[task, :] = found[:, task] = value
    return found


@pytest.mark.parametrize("value", BAD)
def test_task_with_a_bad_gradient_is_left_out(make, value):
    gram = gram_of(gradients("torn", 4, 30, 10.0))
    labelled = torch.tensor([True, True, False, True])
    rule, losses = make(4), torch.ones(4)
    state = rule.initial_state(4)
    absent = balance(rule, gram, losses, state, 3, labelled=labelled)
    bad = balance(rule, with_bad(gram, 2, value), losses, state, 3)
    assert absent.multipliers[2] == 0
    assert absent.multipliers.isfinite().all()
    assert absent.multipliers.any()
    assert absent.active.tolist() == labelled.tolist()
    assert not absent.fallback
    assert torch.equal(bad.multipliers, absent.multipliers)
    for name, before in state.items():
        assert torch.equal(bad.state[name], absent.state[name])
        assert torch.equal(bad.state[name][2], before[2])


def test_zero_gradient_counts_as_absent(make):
    rows = gradients("torn", 4, 30)
    labelled = torch.tensor([True, False, True, True])
    rule, losses = make(4), torch.ones(4)
    state = rule.initial_state(4)
    absent = balance(rule, gram_of(rows), losses, state, 0, labelled=labelled)
    rows[1] = 0
    zero = balance(rule, gram_of(rows), losses, state, 0)
    assert zero.active.tolist() == labelled.tolist()
    torch.testing.assert_close(zero.multipliers, absent.multipliers)


def test_absent_task_with_a_nan_loss_does_no_harm(make):
    gram = gram_of(gradients("torn", 3, 30))
    losses = torch.tensor([1.0, float("nan"), 0.5])
    labelled = torch.tensor([True, False, True])
    rule = make(3)
    found = balance(rule, gram, losses, rule.initial_state(3), 0, labelled=labelled)
    assert not found.fallback
    assert found.multipliers.isfinite().all()


@pytest.mark.parametrize("value", [0.0, *BAD])
def test_nothing_left_falls_back_to_equal(make, value):
    rule = make(3)
    gram = with_bad(torch.zeros(3, 3), 1, value)
    state = rule.initial_state(3)
    found = balance(rule, gram, torch.ones(3), state, 0)
    assert found.fallback
    assert not found.active.any()
    assert found.multipliers.tolist() == [1.0, 1.0 if value == 0 else 0.0, 1.0]
    for name, before in state.items():
        assert torch.equal(found.state[name], before)


@pytest.mark.parametrize(
    ("multiplier", "kept"), [(float("nan"), 1.0), (1e300, 1.0), (1.0, float("inf"))]
)
def test_result_that_is_not_finite_falls_back(multiplier, kept):
    found = apply(Broken(multiplier, kept), with_bad(torch.eye(3), 2, float("nan")))
    assert found.fallback
    assert found.multipliers.tolist() == [1.0, 1.0, 0.0]
    assert not found.state["kept"].any()


def test_state_of_active_tasks_alone_moves():
    found = apply(Broken(2.0, 5.0), with_bad(torch.eye(3), 0, float("inf")))
    assert found.multipliers.tolist() == [0.0, 2.0, 2.0]
    assert found.state["kept"].tolist() == [[0.0, 0.0], [5.0, 5.0], [5.0, 5.0]]


def test_two_finite_tasks_with_a_bad_product_are_left_out():
    gram = torch.eye(3)
    gram[0, 1] = gram[1, 0] = float("inf")
    assert apply(EVERY_RULE["mgda"](3), gram).multipliers.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("name", EVERY_RULE)
def test_one_task(name):
    """Its own gradient, but for the given weight, c = ½ more, e^(-0) / 2, and 4 w = w^(-½)."""
    found = apply(EVERY_RULE[name](1), torch.tensor([[4.0]]))
    others = {"static": 0.5, "cagrad": 1.5, "uncertainty": 0.5, "fairgrad": 4 ** (-2 / 3)}
    expected = others.get(name, 1.0)
    assert not found.fallback
    assert found.multipliers.item() == pytest.approx(expected)


def test_equal_is_exactly_one():
    found = apply(EVERY_RULE["equal"](5), gram_of(gradients("torn", 5, 3))).multipliers
    assert torch.equal(found, torch.ones(5))


def step_with_metrics(make, num_tasks: int, device: str) -> list[torch.Tensor]:
    """Everything that a step gives."""
    rule = make(num_tasks)
    state = rule.initial_state(num_tasks, torch.device(device))
    gram = torch.eye(num_tasks, device=device)
    labelled = torch.ones(num_tasks, dtype=torch.bool, device=device)
    losses = torch.ones(num_tasks, device=device)
    with no_sync(device):
        found = balance(rule, gram, losses, state, 3, labelled=labelled)
        metrics = balance_metrics(gram, found)
    return [*found.state.values(), found.multipliers, found.fallback, *metrics.values()]


@contextmanager
def no_sync(device: str) -> Iterator[None]:
    """Waiting for a CUDA device raises."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("num_tasks", [1, 8])
def test_no_value_is_read(make, num_tasks):
    """Fake tensors have no values: reading one (``.item()``, ``if``, a mask as index) raises."""
    with FakeTensorMode():
        found = step_with_metrics(make, num_tasks, "cpu")
    assert all(isinstance(value, FakeTensor) for value in found)


@pytest.mark.parametrize("num_tasks", [1, 8])
def test_everything_is_on_the_grams_device(make, num_tasks):
    """On the meta device an operand left on the CPU raises."""
    found = step_with_metrics(make, num_tasks, "meta")
    assert all(value.device.type == "meta" for value in found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_tasks", [1, 2, 8, 64])
def test_cuda_is_never_waited_for(make, num_tasks):
    """After a first call, which may set libraries up; and the values are those of the CPU."""
    step_with_metrics(make, num_tasks, "cuda")
    found = step_with_metrics(make, num_tasks, "cuda")
    for value, expected in zip(found, step_with_metrics(make, num_tasks, "cpu"), strict=True):
        torch.testing.assert_close(value.cpu(), expected, equal_nan=True)


def test_same_bits_every_time(make):
    gram = gram_of(gradients("torn", 16, 30, 100.0))
    first, second = (apply(make(16), gram, step=5) for _ in range(2))
    assert torch.equal(first.multipliers, second.multipliers)
    for name, value in first.state.items():
        assert torch.equal(value, second.state[name])


def test_the_two_triangles_count_alike(make):
    gram = gram_of(gradients("torn", 5, 30, 10.0))
    gram = gram + 1e-4 * torch.triu(torch.ones(5, 5), diagonal=1)
    first, second = apply(make(5), gram), apply(make(5), gram.T.contiguous())
    assert torch.equal(first.multipliers, second.multipliers)


def test_arguments_stay_as_they_were(make):
    rule, gram = make(4), gram_of(gradients("torn", 4, 30))
    state = rule.initial_state(4)
    kept = {name: value.clone() for name, value in state.items()}
    before = gram.clone()
    balance(rule, gram, torch.ones(4), state, 0)
    assert torch.equal(gram, before)
    for name, value in kept.items():
        assert torch.equal(state[name], value)


def test_state_has_a_row_per_task(make):
    assert all(len(value) == 7 for value in make(7).initial_state(7).values())
