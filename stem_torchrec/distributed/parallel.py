"""Recommender -> DistributedModelParallel: tables sharded by the plan, the rest in DDP."""

import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv

from stem_torchrec.config import Config
from stem_torchrec.distributed.buckets import SettledBuckets
from stem_torchrec.distributed.constraints import Sharder, World
from stem_torchrec.distributed.plan import Planned, make_plan
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.tables import initialise_tables
from stem_torchrec.optim import fused_params


def plan_on_first_rank(config: Config, module: nn.Module, ranks: Ranks) -> Planned:
    """Rank 0's plan on every rank. Collective.

    Raises:
        UserError: as ``make_plan`` does.
    """
    per_node = config.distributed.ranks_per_node or ranks.local_world_size
    world = World(ranks.world_size, per_node, ranks.device.type)
    sharder = sharder_for(config, ranks.device.type)
    return ranks.on_first(lambda: make_plan(config, module, world, sharder))


def sharder_for(config: Config, device: str) -> Sharder:
    return Sharder(fused_params=fused_params(config.embedding, device))


def shard(
    config: Config, module: nn.Module, planned: Planned, ranks: Ranks
) -> DistributedModelParallel:
    """Shard and initialise the tables, replicate the rest. Collective.

    Gradients may reach dense weights by more ways than DDP's outputs, so its graph is not taken
    as static: with ``static_graph=True`` they would be silently wrong.
    """
    assert dist.group.WORLD is not None
    model = DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=ranks.device,
        plan=planned.plan,
        sharders=[sharder_for(config, ranks.device.type)],
        data_parallel_wrapper=SettledBuckets(static_graph=False),
    )
    initialise_tables(model, seed=config.run.seed, std=config.embedding.init_std)
    return model
