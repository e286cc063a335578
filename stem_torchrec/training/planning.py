"""Plans, and what a step costs under them, for ranks that need not be here."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Config
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.constraints import World
from stem_torchrec.distributed.dense_cost import dense_operations
from stem_torchrec.distributed.hardware import Hardware
from stem_torchrec.distributed.parallel import sharder_for
from stem_torchrec.distributed.plan import Planned, make_plan
from stem_torchrec.distributed.plan_report import columns
from stem_torchrec.distributed.precision import Products
from stem_torchrec.distributed.recommender import Recommender, inputs_of
from stem_torchrec.distributed.step_cost import (
    StepCost,
    TableUse,
    step_cost,
    traffic_of,
)
from stem_torchrec.errors import UserError
from stem_torchrec.runs.schema import selected_schema

_BOUNDS = {
    "compute": "matrix products",
    "memory": "device memory",
    "node_links": "links inside nodes",
    "network": "links between nodes",
    "host": "the host",
}


class Assumed(NamedTuple):
    """What a step's cost depends on and no config says.

    Attributes:
        bag_ids: mean ids of a bag.
    """

    hardware: Hardware
    precision: Products
    bag_ids: float


def plan_offline(config: Config, world: World) -> str:
    """The report of the plan for a world that need not be here.

    Raises:
        UserError: no plan fits.
    """
    return _plan(config, _recommender(config, selected_schema(config), world), world).report


def cost_report(config: Config, worlds: Sequence[World], assumed: Assumed) -> str:
    """A table of what a step costs on each of several worlds; those whose memory does not suffice
    say so."""
    schema = selected_schema(config)
    rows: list[tuple[str, ...]] = [("GPUs", *_COLUMNS, "step", "samples/s", "bound by")]
    for world in worlds:
        try:
            cost = cost_of(config, schema, world, assumed)
        except UserError:
            rows.append((str(world.size), *("-" for _ in (*_COLUMNS, "")), "-", "no plan fits"))
            continue
        figures = (cost.compute, cost.memory, cost.node_links, cost.network, cost.host, cost.step)
        speed = f"{cost.samples_per_s:,.0f}"
        rows.append((str(world.size), *(f"{ms:.2f}" for ms in figures), speed, _BOUNDS[cost.bound]))
    title = (
        f"Estimated ms of a step of {config.train.batch_rows:,} samples per GPU, "
        f"{assumed.precision}, by part"
    )
    return "\n".join([title, "", *columns(rows)]) + "\n"


_COLUMNS = ("products", "memory", "inside nodes", "between nodes", "host")


def cost_of(config: Config, schema: Schema, world: World, assumed: Assumed) -> StepCost:
    """What a step costs under the plan for a world.

    Raises:
        UserError: no plan fits.
    """
    recommender = _recommender(config, schema, world)
    planned = _plan(config, recommender, world)
    model, batch_size = recommender.model, config.train.batch_rows
    widths = inputs_of(schema, config.embedding).pooled_widths(model.owners)
    dense_bytes = 4.0 * sum(weight.numel() for weight in model.parameters())
    tables = table_uses(recommender.embeddings.tables, schema, assumed.bag_ids)
    return step_cost(
        dense_operations(model, widths, len(schema.dense), batch_size),
        traffic_of(planned.plan, tables, dense_bytes, world, batch_size),
        world,
        batch_size,
        assumed.hardware,
        assumed.precision,
    )


def table_uses(
    tables: EmbeddingBagCollection, schema: Schema, bag_ids: float
) -> dict[str, TableUse]:
    """By table, its size and what a row of the batch asks of it."""
    bags = {feature.name for feature in schema.sparse if feature.kind == "bag"}
    return {
        table.name: TableUse(
            rows=table.num_embeddings,
            dim=table.embedding_dim,
            element_bytes=tables.embedding_bags[table.name].weight.element_size(),
            features=len(table.feature_names),
            ids=sum(bag_ids if name in bags else 1.0 for name in table.feature_names),
        )
        for table in tables.embedding_bag_configs()
    }


def _recommender(config: Config, schema: Schema, world: World) -> Recommender:
    with torch.device("meta"):
        return Recommender(config, schema, world.size)


def _plan(config: Config, recommender: Recommender, world: World) -> Planned:
    return make_plan(config, recommender, world, sharder_for(config, world))
