"""Recommender -> DistributedModelParallel: tables sharded by the plan, the rest on every rank."""

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv

from stem_torchrec.config import Config
from stem_torchrec.distributed.constraints import Sharder, World
from stem_torchrec.distributed.optimizers import fused_params
from stem_torchrec.distributed.plan import Planned, make_plan
from stem_torchrec.distributed.precision import comm_codecs, output_type
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.tables import initialise_tables


def plan_on_first_rank(config: Config, module: nn.Module, ranks: Ranks) -> Planned:
    """Rank 0's plan on every rank. Collective.

    Raises:
        UserError: as ``make_plan`` does.
    """
    world = _world(config, ranks)
    sharder = sharder_for(config, world)
    return ranks.on_first(lambda: make_plan(config, module, world, sharder))


def _world(config: Config, ranks: Ranks) -> World:
    per_node = config.distributed.ranks_per_node or ranks.local_world_size
    return World(ranks.world_size, per_node, ranks.device.type)


def sharder_for(config: Config, world: World) -> Sharder:
    params = fused_params(config.embedding, world.device)
    if config.distributed.pipeline == "prefetch" and world.device == "cuda":
        params["prefetch_pipeline"] = True
    params |= output_type(config, world.size, world.device)
    return Sharder(fused_params=params, qcomm_codecs_registry=comm_codecs(config, world.device))


def shard(
    config: Config, module: nn.Module, planned: Planned, ranks: Ranks
) -> DistributedModelParallel:
    """Shard and initialise the tables of ``module``, in place. Collective.

    What is not a table is left as it is, not wrapped in DDP: the step sums its gradients itself.
    """
    assert dist.group.WORLD is not None
    model = DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=ranks.device,
        plan=planned.plan,
        sharders=[sharder_for(config, _world(config, ranks))],
        init_data_parallel=False,
    )
    initialise_tables(model, seed=config.run.seed, std=config.embedding.init_std)
    return model


@torch.no_grad()
def replicate(module: nn.Module, ranks: Ranks) -> None:
    """Move a module to this rank's device, with rank 0's values. Collective."""
    module.to(ranks.device)
    if ranks.world_size > 1:
        for value in (*module.parameters(), *module.buffers()):
            dist.broadcast(value, src=0)
