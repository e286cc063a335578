"""A balancer on anybody's module: against explicit gradients, and what it leaves alone."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import stem_torchrec.balancing as balancing
from stem_torchrec.balancing import Balancer, Mgda, MultiBalance, PcGrad, Static, TorchJd
from stem_torchrec.balancing.rule import balance
from tests.balancing.every_rule import EVERY_RULE

NUM_TASKS = 3


class Net(nn.Module):
    """An encoder that three heads share."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(NUM_TASKS))

    def losses(self, shared: tuple[Tensor, ...], y: Tensor) -> list[Tensor]:
        return [
            (head(part).squeeze(-1) - y[:, task]).square().mean()
            for task, (head, part) in enumerate(zip(self.heads, shared, strict=True))
        ]


def batch(seed: int = 0, rows: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator)
    return x, torch.randn(rows, NUM_TASKS, generator=generator) * torch.tensor([1.0, 5.0, 0.2])


def step(net: Net, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    """Forward and backward; gradients add up in the net."""
    losses = net.losses(balancer.fork(net.encoder(x)), y)
    balancer.observe(losses)
    sum(losses).backward()


def expected(net: Net, rule, x: Tensor, y: Tensor, number: int = 0):
    """Multipliers, and gradients by name, of one step in float64 with explicit gradients."""
    net = copy.deepcopy(net).double()
    shared = net.encoder(x.double())
    losses = net.losses((shared,) * NUM_TASKS, y.double())
    apart = [torch.autograd.grad(loss, shared, retain_graph=True)[0].flatten() for loss in losses]
    flat = torch.stack(apart)
    state = rule.initial_state(NUM_TASKS)
    found = balance(rule, flat @ flat.T, torch.stack(losses), state, number)
    names = [name for name, _ in net.encoder.named_parameters()]
    weighted = sum(a * loss for a, loss in zip(found.multipliers.double(), losses, strict=True))
    encoder = torch.autograd.grad(weighted, list(net.encoder.parameters()), retain_graph=True)
    return found.multipliers, dict(zip(names, encoder, strict=True))


@pytest.mark.parametrize("name", EVERY_RULE)
def test_every_rule_equals_explicit_gradients(name):
    net, (x, y) = Net(), batch()
    rule = EVERY_RULE[name](NUM_TASKS)
    balancer = Balancer(rule, NUM_TASKS)
    multipliers, encoder = expected(net, rule, x, y)
    step(net, balancer, x, y)
    torch.testing.assert_close(balancer.weights, multipliers, rtol=1e-4, atol=1e-5)
    for key, parameter in net.encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, encoder[key].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY_RULE)
def test_heads_keep_their_own_gradient(name):
    net, (x, y) = Net(), batch()
    plain = Net()
    sum(plain.losses((plain.encoder(x),) * NUM_TASKS, y)).backward()
    step(net, Balancer(EVERY_RULE[name](NUM_TASKS), NUM_TASKS), x, y)
    for ours, theirs in zip(net.heads.parameters(), plain.heads.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", ["MGDA", "UPGrad"])
def test_equals_torchjds_own_backward(name):
    autojac = pytest.importorskip("torchjd.autojac", reason="TorchJD is not installed")
    aggregation = pytest.importorskip("torchjd.aggregation")
    net, (x, y) = Net(), batch()
    theirs = net.encoder(x).detach().requires_grad_()
    features = theirs * 1
    losses = net.losses((features,) * NUM_TASKS, y)
    autojac.mtl_backward(losses, features, shared_params=[theirs])
    autojac.jac_to_grad([theirs], getattr(aggregation, name)())
    ours = theirs.detach().requires_grad_()
    balancer = TorchJd(NUM_TASKS, name)
    sum(net.losses(balancer.fork(ours), y)).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_cosines_and_weights_of_two_tasks_at_a_right_angle():
    balancer = Mgda(num_tasks=2)
    shared = torch.zeros(4, 2, requires_grad=True)
    assert balancer.weights.tolist() == [1.0, 1.0]
    assert not balancer.cosines.any()
    first, second = balancer.fork(shared)
    (first[:, 0].sum() + 3.0 * second[:, 1].sum()).backward()
    torch.testing.assert_close(balancer.weights, torch.tensor([0.9, 0.1]))
    torch.testing.assert_close(balancer.cosines, torch.eye(2))


def test_plain_values_where_nothing_is_trained():
    balancer, shared = MultiBalance(num_tasks=2), torch.ones(3, 2, requires_grad=True)
    frozen = torch.ones(3, 2)
    assert all(part is frozen for part in balancer.fork(frozen))
    with torch.no_grad():
        assert all(part is shared for part in balancer.fork(shared))
    balancer.eval()
    first, second = balancer.fork(shared)
    (first.sum() + 3.0 * second.sum()).backward()
    assert (shared.grad == 4.0).all()
    assert balancer.weights.tolist() == [1.0, 1.0]


def test_task_without_a_loss_is_left_out_and_keeps_its_state():
    net, (x, y) = Net(), batch()
    balancer = MultiBalance(NUM_TASKS)
    step(net, balancer, x, y)
    state = {name: value.clone() for name, value in balancer.named_buffers()}
    del state["multipliers"]
    losses = net.losses(balancer.fork(net.encoder(x)), y)
    (losses[0] + losses[2]).backward()
    assert balancer.weights[1] == 0
    assert (balancer.weights[[0, 2]] > 0).all()
    for name, value in state.items():
        assert getattr(balancer, name)[1] == value[1]
        assert getattr(balancer, name)[0] != value[0]


def test_gradient_that_is_not_finite_does_not_reach_the_encoder():
    balancer = Mgda(num_tasks=2)
    shared = torch.ones(2, 2, requires_grad=True)
    first, second = balancer.fork(shared)
    (first.sum() + second.sum() * float("inf")).backward()
    assert shared.grad.isfinite().all()
    assert balancer.weights.tolist() == [1.0, 0.0]


def test_accumulated_batches_are_balanced_each_by_itself():
    net, balancer = Net(), MultiBalance(NUM_TASKS)
    apart, other = Net(), MultiBalance(NUM_TASKS)
    total = [torch.zeros_like(parameter) for parameter in net.parameters()]
    for seed in range(3):
        step(net, balancer, *batch(seed))
        apart.zero_grad()
        step(apart, other, *batch(seed))
        for sum_, parameter in zip(total, apart.parameters(), strict=True):
            sum_ += parameter.grad
    torch.testing.assert_close([p.grad for p in net.parameters()], total)
    assert balancer.state_steps.tolist() == [3, 3, 3]


def test_gram_every_keeps_the_multipliers_between():
    net, balancer = Net(), MultiBalance(NUM_TASKS, gram_every=2)
    found = []
    for seed in range(4):
        step(net, balancer, *batch(seed))
        found.append(balancer.weights.clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    assert torch.equal(found[2], found[3])


@pytest.mark.parametrize("inside", [False, True], ids=["backward after", "backward inside"])
def test_autocast_makes_the_gram_matrix_in_float32(inside):
    net, (x, y) = Net(), batch()
    balancer = Mgda(NUM_TASKS)
    multipliers, _ = expected(net, EVERY_RULE["mgda"](NUM_TASKS), x, y)
    seen = []
    balancer.set_from_ranks, exact = (
        lambda gram: (seen.append(gram), exact(gram)),
        balancer.set_from_ranks,
    )
    with torch.autocast("cpu", torch.bfloat16):
        shared = net.encoder(x)
        loss = sum(net.losses(balancer.fork(shared), y))
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(balancer.weights, multipliers, rtol=0.05, atol=0.05)
    assert all(parameter.grad.dtype == torch.float32 for parameter in net.parameters())


def test_low_precision_gradients_are_summed_in_float32():
    """In bfloat16 4096 terms of 1 would end at 256."""
    shared = torch.ones(4096, 1, dtype=torch.bfloat16, requires_grad=True)
    balancer = MultiBalance(num_tasks=2).bfloat16()
    assert balancer.state_norm_average.dtype == torch.float64
    first, second = balancer.fork(shared)
    (first.float().sum() + second.float().sum()).backward()
    assert balancer.metrics()["gradient_norm"].tolist() == [64.0, 64.0]
    assert shared.grad.dtype == torch.bfloat16


def test_double_precision_stays():
    shared = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    first, second = Static(num_tasks=2, weights=(0.25, 0.5)).fork(shared)
    (first.sum() + second.sum()).backward()
    assert shared.grad.dtype == torch.float64
    assert (shared.grad == 0.75).all()


@pytest.mark.parametrize("kind", [MultiBalance, PcGrad])
def test_saved_and_loaded_goes_on_alike(kind, tmp_path):
    net, balancer = Net(), kind(NUM_TASKS)
    for seed in range(3):
        step(net, balancer, *batch(seed))
    torch.save(balancer.state_dict(), tmp_path / "balancer.pt")
    other = kind(NUM_TASKS)
    other.load_state_dict(torch.load(tmp_path / "balancer.pt"))
    assert torch.equal(other.weights, balancer.weights)
    twin = copy.deepcopy(balancer)
    for seed in range(3, 8):
        for one in (balancer, other, twin):
            step(net, one, *batch(seed))
        assert torch.equal(other.weights, balancer.weights)
        assert torch.equal(twin.weights, balancer.weights)


def test_has_nothing_for_an_optimizer():
    assert list(MultiBalance(2).parameters()) == []


@pytest.mark.parametrize("normalization", ["loss", "loss+"])
def test_rule_that_reads_losses_asks_for_them(normalization):
    net, (x, y) = Net(), batch()
    balancer = Mgda(NUM_TASKS, normalization=normalization)
    step(net, balancer, x, y)
    losses = net.losses(balancer.fork(net.encoder(x)), y)
    with pytest.raises(RuntimeError, match=r"MgdaRule.*observe\(losses\)"):
        sum(losses).backward()


def test_undeclared_reading_of_losses_falls_back_and_says_so():
    class Careless(balancing.Rule):
        def multipliers(self, situation, state, step):
            return situation.losses, state

    shared = torch.ones(2, 2, requires_grad=True)
    balancer = Balancer(Careless(), 2)
    first, second = balancer.fork(shared)
    (first.sum() + second.sum()).backward()
    assert balancer.metrics()["fallback"] == 1
    assert (shared.grad == 2.0).all()


def test_parts_may_not_be_changed_in_place():
    shared = torch.ones(2, 2, requires_grad=True)
    first, _ = MultiBalance(num_tasks=2).fork(shared * 1)
    with pytest.raises(RuntimeError, match="inplace"):
        first.relu_()


def test_second_derivatives_are_refused():
    shared = torch.ones(2, 2, requires_grad=True)
    first, second = MultiBalance(num_tasks=2).fork(shared)
    (grad,) = torch.autograd.grad((first**2 + second**2).sum(), shared, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiBalance(num_tasks=0), "num_tasks: 0; allowed: at least 1"),
        (lambda: MultiBalance(num_tasks=2, gram_every=0), "gram_every: 0; allowed: at least 1"),
        (lambda: MultiBalance(num_tasks=2, gamma=1.5), "gamma: 1.5; allowed: .*above 0, at most 1"),
        (lambda: Static(num_tasks=2, weights=(1.0,)), "weights: 1 weights; allowed: 2"),
        (lambda: Static(num_tasks=2), "weights: None; allowed"),
        (lambda: TorchJd(2, "Nope"), "rule: 'torchjd:Nope'; allowed with torchjd: .*UPGrad"),
        (lambda: MultiBalance(2).observe(torch.ones(3)), r"losses: \(3,\); allowed: \(2,\)"),
    ],
)
def test_mistakes_are_told_in_plain_words(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_public_names_are_there_and_have_words():
    for name in balancing.__all__:
        assert getattr(balancing, name).__doc__, name


def test_import_needs_torch_alone():
    heavy = ("torchrec", "fbgemm_gpu", "pydantic", "pyarrow", "duckdb", "yaml")
    program = (
        "import sys, stem_torchrec.balancing\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
        "print([name for name in sys.modules if name.startswith('stem_torchrec.config')])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.split("\n")[:2] == ["[]", "[]"], run.stdout + run.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what it deprecates
def test_a_compiled_rule_gives_the_same() -> None:
    torch._dynamo.reset()
    graphs = []
    net, compiled = Net(), Net()
    balancers = [MultiBalance(NUM_TASKS) for _ in range(2)]
    balancers[1].compile_rule(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for number in range(3):
        for own, balancer in zip((net, compiled), balancers, strict=True):
            balancer.begin(number)
            step(own, balancer, *batch(number))
    assert len(graphs) == 1
    for one, other in zip(balancers[0].buffers(), balancers[1].buffers(), strict=True):
        assert torch.equal(one, other)
    on_the_host = PcGrad(NUM_TASKS)
    on_the_host.compile_rule(backend="eager")
    assert on_the_host._balance is balance
