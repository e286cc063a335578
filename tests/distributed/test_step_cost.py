"""The model of a step's cost, beside what can be counted by hand."""

import json

import pytest
import torch

from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.distributed.constraints import World
from stem_torchrec.distributed.dense_cost import Operation, dense_operations
from stem_torchrec.distributed.hardware import KNOWN, hardware_of
from stem_torchrec.distributed.recommender import Recommender
from stem_torchrec.distributed.step_cost import StepCost, TableUse, Traffic, step_cost, traffic_of
from stem_torchrec.errors import UserError
from stem_torchrec.training.planning import Assumed, cost_of
from tests.distributed.test_plan import planned
from tests.support.steps import config_of

TWO_TABLES = Schema(
    features=(
        Feature(name="user", kind="id", num_embeddings=1000),
        Feature(name="tags", kind="bag", num_embeddings=500),
    ),
    tasks=(Task(name="click"),),
)
SINGLE = {"name": "single_task", "tower_widths": [8]}


def test_products_are_those_of_the_layers(tmp_path):
    """Forward, and two products backward: the inputs of the first layer have gradients too."""
    config = config_of(tmp_path, TWO_TABLES, model=SINGLE)
    with torch.device("meta"):
        model = Recommender(config, TWO_TABLES).model
    widths = dict.fromkeys(model.owners, 16)
    operations = dense_operations(model, widths, 0, 64)
    named = model.named_parameters()
    weights = sum(weight.numel() for name, weight in named if name.endswith("weight"))
    assert sum(each.flops for each in operations) == pytest.approx(6 * 64 * weights, rel=0.02)
    assert sum(each.num_bytes for each in operations) > 64 * 16 * 4 * len(widths)


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_traffic_by_hand(tmp_path, sharding):
    """Two ranks on two nodes, B 8, D 16; tags have 3 ids."""
    world = World(2, 1, "cuda")
    found = planned(
        tmp_path,
        world,
        features=TWO_TABLES,
        model=SINGLE,
        distributed={"sharding": sharding},
    )
    tables = {
        "click__user": TableUse(1000, 16, 4, features=1, ids=1.0),
        "click__tags": TableUse(500, 16, 4, features=1, ids=3.0),
    }
    traffic = traffic_of(found.plan, tables, 1000.0, world, batch_size=8)
    ids = {"table_wise": 3, "row_wise": 2}[sharding] * 16  # of the busiest rank
    features = {"table_wise": 1, "row_wise": 2}[sharding]
    sums = features * 2 * 16 * 16 * 4  # partial ones in row shards
    assert traffic.pooled == (0, sums / 2)  # half of the batches is the other rank's
    assert traffic.beside == (0, ids * 8 / 2 + 1000)  # 2 * (W - 1) / W of the dense gradients
    assert traffic.memory == ids * (96 + 4 * 16 * 4) + sums


def test_the_step_takes_what_does_not_overlap():
    hardware = KNOWN["h200"]._replace(
        memory_bytes_per_s=1e9,
        tf32_flops_per_s=1e12,
        node_link_bytes_per_s=1e9,
        network_bytes_per_s=1e8,
        operation_s=1e-9,
        step_s=1e-9,
    )
    # 2 ms of products or 1 of memory; 3 ms of memory.
    operations = [Operation(2e9, 1e6), Operation(0, 3e6)]

    def cost(pooled: tuple[float, float], beside: tuple[float, float]) -> StepCost:
        traffic = Traffic(1e6, pooled, beside)
        return step_cost(operations, traffic, World(4, 2, "cuda"), 100, hardware, "tf32")

    within = cost((1e6, 2e5), (1e6, 0))
    assert (within.compute, within.memory) == pytest.approx((2, 5))
    assert within.step == pytest.approx(2 + 3 + 1 + 2)  # pooled features: the slower link
    assert within.bound == "memory"
    assert within.samples_per_s == pytest.approx(4 * 100 / 8e-3)
    slow = cost((0, 0), (0, 1e6))
    assert (slow.step, slow.bound) == (pytest.approx(10), "network")


def test_more_gpus_cost_network_and_bring_samples(tmp_path):
    config = config_of(tmp_path, TWO_TABLES, train={"batch_size": 4096})
    assumed = Assumed(hardware_of("h200"), "bf16", bag_ids=10)
    one, many = (cost_of(config, TWO_TABLES, World(size, 8, "cuda"), assumed) for size in (8, 64))
    assert one.network == 0
    assert many.network > 0
    assert one.step <= many.step < 8 * one.step
    assert many.compute == one.compute


def test_hardware_from_a_file(tmp_path):
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"hardware": KNOWN["h100"]._asdict()}))
    assert hardware_of(str(file)) == KNOWN["h100"]
    for content in ("", "{}", '{"hardware": {"fast": 1}}', '{"hardware": []}'):
        file.write_text(content)
        with pytest.raises(UserError, match=r"--hardware: .*h100, h200, or a JSON file"):
            hardware_of(str(file))
    with pytest.raises(UserError, match="--hardware: 'h300'"):
        hardware_of("h300")
