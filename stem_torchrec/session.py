"""A model with what trains it, built and sharded on these ranks."""

from dataclasses import dataclass

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from stem_torchrec.balancing.fork import BalancedFork
from stem_torchrec.config import Config
from stem_torchrec.data.negatives import negative_sampling
from stem_torchrec.data.reader import ParquetReader, find_rows
from stem_torchrec.distributed.balance import install
from stem_torchrec.distributed.parallel import plan_on_first_rank, shard
from stem_torchrec.distributed.pipeline import Pipeline
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.optim import Optimizers
from stem_torchrec.place import Place
from stem_torchrec.recommender import Recommender, TrainStep
from stem_torchrec.schema import Schema, load_schema


@dataclass(frozen=True)
class Session:
    """A sharded model with what trains it, on this rank."""

    config: Config
    schema: Schema
    ranks: Ranks
    model: DistributedModelParallel
    optimizers: Optimizers
    pipeline: Pipeline
    fork: BalancedFork | None
    plan_report: str

    @property
    def table_sharding(self) -> dict[str, str]:
        """Sharding type by table."""
        return {
            table: sharding.sharding_type
            for module in self.model.plan.plan.values()
            for table, sharding in module.items()
        }


def selected_schema(config: Config) -> Schema:
    """The data's schema with the config's features and tasks only."""
    schema = load_schema(config.data.path)
    return schema.select(features=config.data.features, tasks=config.tasks.names)


def build(config: Config, ranks: Ranks) -> Session:
    """Model, plan, sharding, optimizers, pipeline. Collective."""
    schema = selected_schema(config)
    torch.manual_seed(config.run.seed)
    step = TrainStep(Recommender(config, schema, ranks.world_size), ranks.rank_mean)
    fork = install(
        config,
        schema,
        step,
        world_size=ranks.world_size,
        rank_mean=ranks.rank_mean,
        group=ranks.loss_group,
    )
    planned = plan_on_first_rank(config, step, ranks)
    model = shard(config, step, planned, ranks)
    optimizers = Optimizers(config, model)
    pipeline = Pipeline(model, optimizers, ranks, undo=fork.undo if fork is not None else None)
    return Session(config, schema, ranks, model, optimizers, pipeline, fork, planned.report)


def open_split(
    session: Session, split: str, *, in_file_order: bool = False, for_training: bool = False
) -> ParquetReader:
    """The reader of a split: shuffled for ``train`` unless asked, in file order for the others.

    Collective: rank 0 reads the footers for all.

    Args:
        for_training: leave out negatives as ``data.negative_rate`` says.
    """
    config, ranks, schema = session.config, session.ranks, session.schema
    training = split == "train"
    days = config.data.days_of(split)
    rate = config.data.negative_rate if for_training else 1.0
    negatives = negative_sampling(rate, config.run.seed, schema)
    manifest = ranks.on_first(
        lambda: find_rows(config.data.path, split, schema, days=days, negatives=negatives)
    )
    return ParquetReader(
        config.data.path,
        split,
        schema,
        batch_size=config.train.batch_size
        if training
        else config.eval.batch_size or config.train.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle=training and config.data.shuffle and not in_file_order,
        seed=config.run.seed,
        shuffle_row_groups=config.data.shuffle_row_groups,
        prefetch=config.data.prefetch_batches,
        pin_memory=ranks.device.type == "cuda",
        negatives=negatives,
        manifest=manifest,
    )


def has_split(path: Place, split: str) -> bool:
    return (path / split).is_dir()
