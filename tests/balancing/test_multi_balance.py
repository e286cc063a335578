"""MultiBalance: its update written out, the state, and its scale properties."""

import numpy as np
import pytest
import torch

from stem_torchrec.balancing.rule import balance
from stem_torchrec.balancing.rules.multi_balance import MultiBalanceOptions, MultiBalanceRule
from tests.balancing.grams import apply, gradients, gram_of


def projected(values: np.ndarray) -> np.ndarray:
    """On the simplex, by bisection of the threshold."""
    low, high = values.min() - 1, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        if np.maximum(values - middle, 0).sum() > 1:
            low = middle
        else:
            high = middle
    return np.maximum(values - high, 0)


def run(rule: MultiBalanceRule, grams: list[torch.Tensor]) -> list[torch.Tensor]:
    """The multipliers of consecutive steps."""
    state, found = rule.initial_state(len(grams[0])), []
    for step, gram in enumerate(grams):
        result = balance(rule, gram, torch.ones(len(gram)), state, step)
        state = result.state
        found.append(result.multipliers)
    return found


def drifting(kind: str, num_tasks: int, scale: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Gram matrices of ten steps; ``scale`` (T,) multiplies the gradients."""
    factor = torch.ones(num_tasks) if scale is None else scale
    rows = [gradients(kind, num_tasks, 30, 10.0, seed) for seed in range(10)]
    return [gram_of(each * factor.unsqueeze(1)) for each in rows]


@pytest.mark.parametrize("beta", [None, 0.3])
@pytest.mark.parametrize(("matrix", "floor"), [("cosine", 0.0), ("gram", 0.0), ("gram", 0.6)])
def test_equals_the_formula_over_ten_steps(matrix, floor, beta):
    gamma, rho, num_tasks = 0.1, 0.2, 4
    grams = drifting("torn", num_tasks)
    found = run(MultiBalanceRule(MultiBalanceOptions(gamma, rho, beta, matrix, floor)), grams)
    average, weights, uniform = np.zeros(4), np.full(4, 0.25), np.full(4, 0.25)
    for step, gram in enumerate(grams):
        exact = gram.double().numpy()
        norms = np.sqrt(np.diag(exact))
        average = (1 - gamma) * average + gamma * norms
        used = exact / np.outer(norms, norms) if matrix == "cosine" else exact
        size = beta or 1 / np.abs(used).sum(axis=1).max()
        moved = weights - size * (used @ weights + rho * used @ uniform)
        weights = floor / 4 + (1 - floor) * projected((moved - floor / 4) / (1 - floor))
        unbiased = average / (1 - (1 - gamma) ** (step + 1))
        expected = num_tasks * weights * unbiased / norms
        np.testing.assert_allclose(found[step].numpy(), expected, rtol=1e-6, atol=1e-7)


def step_by_definition(gram, active, average, weights, steps, options):
    """The formula on the active tasks alone, in float64; what is left out stays."""
    norms = np.sqrt(np.diag(gram)[active])
    uniform = np.full(len(norms), 1 / len(norms))
    used = gram[np.ix_(active, active)]
    if options.matrix == "cosine":
        used = np.clip(used / np.outer(norms, norms), -1, 1)
    steps[active] += 1
    average[active] += options.gamma * (norms - average[active])
    before = projected(weights[active])
    size = options.beta or 1 / np.abs(used).sum(axis=1).max()
    moved = before - size * (used @ (before + options.rho * uniform))
    least = options.floor * uniform
    weights[active] = least + (1 - options.floor) * projected((moved - least) / (1 - options.floor))
    multipliers = np.zeros(len(gram))
    unbiased = average[active] / (1 - (1 - options.gamma) ** steps[active])
    multipliers[active] = len(norms) * weights[active] * unbiased / norms
    return multipliers


@pytest.mark.parametrize("num_tasks", [2, 8])
@pytest.mark.parametrize(
    "options",
    [MultiBalanceOptions(), MultiBalanceOptions(0.3, beta=0.2, matrix="gram", floor=0.4)],
)
def test_tasks_come_and_go_and_break(options, num_tasks):
    """Unlabelled, with a gradient of zero or NaN: state to 1e-12 of the formula over 60 steps."""
    generator = np.random.default_rng(0)
    rule = MultiBalanceRule(options)
    state = rule.initial_state(num_tasks)
    average, weights, steps = (value.numpy().copy() for value in state.values())
    for step in range(60):
        rows = generator.normal(size=(num_tasks, 20)) * generator.lognormal(size=(num_tasks, 1))
        rows += step % 3 * generator.normal(size=20)
        out = generator.random(num_tasks) < 0.3
        if step % 4 == 1:
            rows[out] = 0.0
        gram = rows @ rows.T
        if step % 4 == 2:
            gram[out] = gram[:, out] = np.nan
        active = np.ones(num_tasks, dtype=bool) if step % 4 == 0 else ~out
        labelled = torch.from_numpy(active) if step % 4 == 3 else None
        given = torch.from_numpy(gram)
        found = balance(rule, given, torch.ones(num_tasks), state, step, labelled=labelled)
        state = found.state
        if active.any():
            expected = step_by_definition(gram, active, average, weights, steps, options)
            np.testing.assert_allclose(found.multipliers.numpy(), expected, rtol=1e-6, atol=1e-7)
        else:
            assert found.fallback
        for value, expected in zip(state.values(), (average, weights, steps), strict=True):
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.25, 0.9])
def test_no_weight_is_below_the_floor(floor):
    """The task with by far the largest gradient has none of the weight without a floor."""
    gram = gram_of(gradients("random", 3, 500) * torch.tensor([[1.0], [1e3], [1.0]]))
    options = MultiBalanceOptions(matrix="gram", floor=floor)
    rule, state = MultiBalanceRule(options), MultiBalanceRule(options).initial_state(3)
    for step in range(20):
        state = balance(rule, gram, torch.ones(3), state, step).state
    assert float(state["weights"].min()) == pytest.approx(floor / 3, abs=1e-9)
    assert float(state["weights"].sum()) == pytest.approx(1.0)


def test_two_tasks_have_equal_weights_whatever_their_gradients_are():
    """Both rows of a cosine matrix have the same sum; of a Gram matrix they have not."""
    grams = [torch.tensor([[1.0, product], [product, 100.0]]) for product in (5.0, -9.0, 0.0)]
    for found in run(MultiBalanceRule(MultiBalanceOptions(gamma=1.0)), grams):
        torch.testing.assert_close(found, torch.ones(2))
    for first, second in run(MultiBalanceRule(MultiBalanceOptions(1.0, matrix="gram")), grams):
        assert first > second


def test_first_step_of_orthogonal_gradients_is_equal_weights():
    found = apply(MultiBalanceRule(), torch.diag(torch.tensor([1.0, 9.0, 1e4]))).multipliers
    torch.testing.assert_close(found, torch.ones(3))


def test_golden_step():
    """C = [[1, ½, 0], [½, 1, 0], [0, 0, 1]], β = 2/3, C(λ+ρλ0) = (0.55, 0.55, 11/30)."""
    gram = torch.tensor([[4.0, 3.0, 0.0], [3.0, 9.0, 0.0], [0.0, 0.0, 1.0]])
    found = apply(MultiBalanceRule(), gram)
    shift = 2 / 3 * (0.55 - 11 / 30)
    expected = torch.tensor([1 - shift, 1 - shift, 1 + 2 * shift])
    torch.testing.assert_close(found.multipliers, expected)
    torch.testing.assert_close(found.state["weights"].float(), expected / 3)
    expected_average = torch.tensor([0.02, 0.03, 0.01], dtype=torch.float64)
    torch.testing.assert_close(found.state["norm_average"], expected_average)
    assert found.state["steps"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_scale_of_one_loss_from_the_start_changes_no_multiplier(factor):
    scale = torch.tensor([1.0, factor, 1.0, 1.0])
    plain = run(MultiBalanceRule(), drifting("torn", 4))
    scaled = run(MultiBalanceRule(), drifting("torn", 4, scale))
    for before, after in zip(plain, scaled, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)


def test_sudden_scale_of_one_loss_is_damped():
    """A gradient 1000 times its usual size enters with (1 + 999 γ) times its usual norm.

    More exactly û changes by the share that the step has in the bias-corrected average.
    """
    gamma, steps = 0.01, 200
    gram = gram_of(gradients("random", 4, 500))
    scale = torch.tensor([1.0, 1e3, 1.0, 1.0])
    shocked = gram * torch.outer(scale, scale)
    rule = MultiBalanceRule(MultiBalanceOptions(gamma=gamma))
    usual = run(rule, [gram] * steps)[-1]
    found = run(rule, [gram] * (steps - 1) + [shocked])[-1]
    share = gamma / (1 - (1 - gamma) ** steps)
    others = torch.tensor([True, False, True, True])
    torch.testing.assert_close(found[others], usual[others], rtol=1e-4, atol=1e-6)
    growth = float(found[1] * 1e3 / usual[1])
    assert growth == pytest.approx(1 + 999 * share, rel=1e-3)


def test_absent_task_keeps_its_state_and_rejoins():
    grams = drifting("random", 3)
    rule, losses = MultiBalanceRule(MultiBalanceOptions(gamma=0.5)), torch.ones(3)
    first = balance(rule, grams[0], losses, rule.initial_state(3), 0)
    labelled = torch.tensor([True, False, True])
    second = balance(rule, grams[1], losses, first.state, 1, labelled=labelled)
    assert second.multipliers[1] == 0
    for name, before in first.state.items():
        assert second.state[name][1] == before[1]
        assert (second.state[name] != before)[labelled].all()
    present = second.state["weights"][labelled]
    assert float(present.sum()) == pytest.approx(1.0)
    third = balance(rule, grams[2], losses, second.state, 2)
    assert third.state["steps"].tolist() == [3, 2, 3]
    assert float(third.state["weights"].sum()) == pytest.approx(1.0)


def test_present_tasks_start_as_if_the_absent_one_did_not_exist():
    gram = gram_of(gradients("random", 5, 10, 10.0))
    labelled = torch.tensor([True, True, False, True, True])
    rule = MultiBalanceRule(MultiBalanceOptions(beta=0.5))
    state = rule.initial_state(5)
    found = balance(rule, gram, torch.ones(5), state, 0, labelled=labelled).multipliers
    alone = apply(rule, gram[labelled][:, labelled]).multipliers
    torch.testing.assert_close(found[labelled], alone)
    assert float(alone.sum()) == pytest.approx(4.0, rel=1e-5)


def test_task_that_was_alone_meets_others_again():
    """λ of those present sums to 1 before the step, too: no weight comes from nowhere."""
    grams = drifting("random", 4)
    rule, losses = MultiBalanceRule(), torch.ones(4)
    first = balance(
        rule,
        grams[0],
        losses,
        rule.initial_state(4),
        0,
        labelled=torch.tensor([True] + [False] * 3),
    )
    assert first.state["weights"].tolist() == [1.0, 0.25, 0.25, 0.25]
    weights = projected(first.state["weights"].numpy())
    exact = grams[1].double().numpy()
    norms = np.sqrt(np.diag(exact))
    used = exact / np.outer(norms, norms)
    size = 1 / np.abs(used).sum(axis=1).max()
    expected = projected(weights - size * (used @ weights + 0.1 * used @ np.full(4, 0.25)))
    second = balance(rule, grams[1], losses, first.state, 1)
    np.testing.assert_allclose(second.state["weights"].numpy(), expected, rtol=1e-6, atol=1e-9)
