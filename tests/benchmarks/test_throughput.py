"""The throughput benchmark: an honest baseline, and the rows it promises."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from children import Timing
from contestants import Contestant
from matrix_floor import MatrixFloor
from plain_stem_net import PlainStemNet
from throughput import contestants, rows_of
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from workload import VOCABULARIES, Workload, scaled

from stem_torchrec.data.batch import Batch
from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.distributed.recommender import Recommender
from stem_torchrec.nn.losses import labelled, task_losses
from stem_torchrec.nn.mlp import BatchedMlp
from stem_torchrec.nn.owners import SHARED

BATCH_SIZE = 64
TINY = Workload(
    Path("unused"),
    vocabularies=(11, 7, 5),
    batch_size=BATCH_SIZE,
    dim=4,
    expert_widths=(16, 8),
    hidden_widths=(8, 4),
)
SCHEMA = Schema(
    features=tuple(
        Feature(name=f"f{i}", kind="id", num_embeddings=rows)
        for i, rows in enumerate(TINY.vocabularies)
    ),
    tasks=(Task(name="click"), Task(name="like")),
)
OWNERS = (SHARED, *SCHEMA.task_names)


@pytest.fixture
def trainers_model() -> Recommender:
    torch.manual_seed(0)
    config = TINY.config({"embedding": {"weight_decay": 0.0}})
    model = Recommender(config, SCHEMA).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return model


@pytest.fixture
def batch() -> Batch:
    random = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, n, (BATCH_SIZE,), generator=random) for n in TINY.vocabularies]
    sparse = KeyedJaggedTensor(
        keys=[feature.name for feature in SCHEMA.sparse],
        values=torch.cat(ids),
        lengths=torch.ones(len(ids) * BATCH_SIZE, dtype=torch.int32),
    )
    labels = torch.randint(0, 2, (BATCH_SIZE, 2), generator=random).float()
    return Batch(sparse, torch.empty(BATCH_SIZE, 0), labels, num_samples=BATCH_SIZE)


def matching(
    plain: PlainStemNet, ours: Recommender, part: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, plain and our ``part`` (values or gradient) of every piece of every parameter."""
    for table, feature in zip(plain.tables, SCHEMA.sparse, strict=True):
        columns = part(table.weight).split(TINY.dim, dim=1)
        for owner, piece in zip(OWNERS, columns, strict=True):
            name = f"{owner}__{feature.name}"
            yield name, piece, part(ours.embeddings.tables.embedding_bags[name].weight)
    block = ours.model.stack.blocks[0]
    shared_expert, *task_experts = plain.experts
    for name, perceptrons, batched in (
        ("shared expert", [shared_expert], block.shared_experts),
        ("task expert", task_experts, block.task_experts),
        ("gate", plain.gates, block.gates.mlp),
        ("tower", plain.towers, ours.model.towers.mlp),
    ):
        for k, perceptron in enumerate(perceptrons):
            yield from matching_layers(f"{name} {k}", perceptron, batched, k, part)


def matching_layers(
    name: str, perceptron: nn.Sequential, batched: BatchedMlp, k: int, part: Callable
) -> Iterator[tuple[str, Tensor, Tensor]]:
    layers = [layer for layer in perceptron if isinstance(layer, nn.Linear)]
    last = [batched.last] if batched.last is not None else []
    for layer, ours in zip(layers, [*batched.hidden, *last], strict=True):
        yield f"{name} weight", part(layer.weight), part(ours.weight)[k].t()
        yield f"{name} bias", part(layer.bias), part(ours.bias)[k].flatten()


def copied(model: Recommender) -> PlainStemNet:
    """A plain model with our weights."""
    plain = PlainStemNet(TINY.vocabularies, 2, TINY.dim, TINY.expert_widths, TINY.hidden_widths)
    for parameter in plain.parameters():
        nn.init.constant_(parameter, torch.nan)
    for _, theirs, ours in matching(plain, model, Tensor.detach):
        theirs.copy_(ours)
    assert not any(parameter.isnan().any() for parameter in plain.parameters())
    return plain


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_the_plain_model_has_our_loss_and_gradients(
    trainers_model: Recommender, batch: Batch
) -> None:
    plain = copied(trainers_model)
    target = labelled(batch.labels, None)
    ours = task_losses(trainers_model(batch), target, target.weights.sum(dim=0)).sum()
    ours.backward()
    ids = batch.sparse.values().view(len(TINY.vocabularies), BATCH_SIZE)
    theirs = plain.loss(ids, batch.labels, l2=0.0)
    theirs.backward()

    torch.testing.assert_close(theirs, ours)
    for name, plain_gradient, our_gradient in matching(plain, trainers_model, gradient):
        torch.testing.assert_close(plain_gradient, our_gradient, msg=lambda m, n=name: f"{n}: {m}")


def test_the_plain_l2_reaches_every_row(trainers_model: Recommender, batch: Batch) -> None:
    plain = copied(trainers_model)
    ids = torch.zeros(len(TINY.vocabularies), BATCH_SIZE, dtype=torch.long)
    plain.loss(ids, batch.labels, l2=0.5).backward()
    for table in plain.tables:
        torch.testing.assert_close(table.weight.grad[1:], 0.5 * table.weight.detach()[1:])


def test_the_floor_has_as_many_products_as_the_plain_model_has_layers() -> None:
    plain = PlainStemNet(TINY.vocabularies, 2, TINY.dim, TINY.expert_widths, TINY.hidden_widths)
    width = len(TINY.vocabularies) * TINY.dim
    floor = MatrixFloor(BATCH_SIZE, width, 2, TINY.expert_widths, TINY.hidden_widths)
    shapes = sorted((layer.weight.t().shape, layer.y.shape[0]) for layer in floor.layers)
    linear = [module for module in plain.modules() if isinstance(module, nn.Linear)]
    assert shapes == sorted((layer.weight.shape, BATCH_SIZE) for layer in linear)
    before = [layer.weight_gradient.clone() for layer in floor.layers]
    floor.step()
    for layer, old in zip(floor.layers, before, strict=True):
        assert not torch.equal(layer.weight_gradient, old)


def test_vocabularies_grow_to_the_rows_wanted() -> None:
    large = scaled(VOCABULARIES, 20_000_000)
    assert abs(sum(large) - 20_000_000) < len(large)
    assert [size for size in large if size < 1_000] == [400, 100, 5]


def test_rows_hold_ratios_within_rounds() -> None:
    wide = Workload(Path("unused"), vocabularies=(1_000,), batch_size=100)
    seconds = {"floor": [1.0, 2.0, 4.0], "plain": [4.0, 8.0, 16.0]}
    results = [
        Timing(Contestant(name, name, TINY), seconds=values, busy_cores=[1.0, 0.5, 1.0])
        for name, values in seconds.items()
    ]
    results += [
        Timing(Contestant("trainer", "trainer", TINY), seconds=[2.0, 4.0, 4.0], busy_cores=[1.0]),
        Timing(Contestant("trainer", "trainer", wide), seconds=[4.0, 4.0, 8.0], busy_cores=[1.0]),
        Timing(Contestant("plain", "plain", wide, alone=True), failure="does not fit: 1 GB"),
    ]
    floor, plain, trainer, large, unfit = rows_of(results, threads=1)
    assert plain["share_of_floor"] == 0.25
    assert plain["busy_cores"] == 1.0
    assert trainer["ratio_to_plain"] == 2.0
    assert trainer["share_of_floor"] == 0.5
    assert trainer["samples_per_s"] == BATCH_SIZE / 4
    assert trainer["samples_per_s_range"] == [BATCH_SIZE / 4, BATCH_SIZE / 2]
    assert large["ratio_to_small_tables"] == 0.5
    assert large["ratio_to_plain"] is None
    assert floor["ratio_to_plain"] is None
    assert unfit["samples_per_s"] is None
    assert unfit["failure"] == "does not fit: 1 GB"


@pytest.mark.slow
def test_the_script_writes_its_rows(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "throughput.py"
    out = tmp_path / "result.json"
    names = ("floor", "plain", "trainer rowwise_adagrad", "tables", "tables fused*", "*small data")
    options = ["--smoke", "--threads", "1", "--rounds", "2", "--steps", "2", "--names", *names]
    where = ["--json", str(out), "--workdir", str(tmp_path)]
    subprocess.run([sys.executable, str(script), *where, *options], check=True)
    result = json.loads(out.read_text())
    every = [c.name for c in contestants(TINY, replace(TINY, num_tasks=8), TINY, TINY)]
    wanted = [name for name in every if any(fnmatch(name, pattern) for pattern in names)]
    assert [row["name"] for row in result["rows"]] == wanted
    for row in result["rows"]:
        assert row["failure"] is None
        assert row["samples_per_s"] > 0
        assert row["peak_rss_bytes"] > 0
        two_tasks_in_full = row["tasks"] == 2 and not row["name"].startswith("tables")
        assert (row["share_of_floor"] is not None) == two_tasks_in_full
        separate = row["name"].replace(" fused", "")  # of "tables fused, 8 tasks" it is not there
        has_separate = separate != row["name"] and separate in wanted
        assert (row["ratio_to_separate"] is not None) == has_separate
    assert result["provenance"]["torch"]
