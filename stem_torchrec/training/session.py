"""A model with what trains it, built and sharded on these ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from stem_torchrec.balancing.fork import BalancedFork
from stem_torchrec.config import Config
from stem_torchrec.config.days import Days
from stem_torchrec.data.batch import Batch
from stem_torchrec.data.negatives import negative_sampling
from stem_torchrec.data.reader import ParquetReader, find_rows
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.balance import install
from stem_torchrec.distributed.captured_step import CapturedStep, CudaGraphs
from stem_torchrec.distributed.dense_step import DenseStep
from stem_torchrec.distributed.forward_backward import ForwardBackward, Gradients
from stem_torchrec.distributed.inputs import input_pipeline
from stem_torchrec.distributed.local_lookup import LocalLookup, is_local
from stem_torchrec.distributed.optimizers import Optimizers
from stem_torchrec.distributed.parallel import plan_on_first_rank, replicate, shard
from stem_torchrec.distributed.precision import dense_precision
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.recommender import Recommender
from stem_torchrec.distributed.step import TrainStep
from stem_torchrec.nn.compiled import compile_model
from stem_torchrec.runs.schema import selected_schema
from stem_torchrec.storage.place import Place


@dataclass(frozen=True)
class Session:
    """A sharded model with what trains it, on this rank.

    Attributes:
        model: holds the state, by the names that checkpoints know.
        recommender: its one part, to be called.
        splits: those of the data as the session begins. One that is gone later is an error, not
            an evaluation less.
    """

    config: Config
    schema: Schema
    ranks: Ranks
    model: DistributedModelParallel
    recommender: Recommender
    optimizers: Optimizers
    step: TrainStep
    fork: BalancedFork | None
    plan_report: str
    splits: frozenset[str]

    @property
    def table_sharding(self) -> dict[str, str]:
        """Sharding type by table."""
        return {
            table: sharding.sharding_type
            for module in self.model.plan.plan.values()
            for table, sharding in module.items()
        }


def build(config: Config, ranks: Ranks, schema: Schema | None = None) -> Session:
    """Model, plan, sharding, optimizers, step. Collective.

    Args:
        schema: features and tasks in their order; those that the config selects if None.
    """
    schema = schema or selected_schema(config)
    torch.manual_seed(config.run.seed)
    recommender = Recommender(config, schema, ranks.world_size)
    precision = dense_precision(config.train.precision, ranks.device.type)
    dense_step = DenseStep(recommender.model, ranks.rank_mean, precision)
    fork = install(
        config,
        schema,
        recommender.model,
        dense_step,
        world_size=ranks.world_size,
        rank_mean=ranks.rank_mean,
        group=ranks.dense_group,
    )
    replicate(recommender.model, ranks)
    named = nn.ModuleDict({"recommender": recommender})
    planned = plan_on_first_rank(config, named, ranks)
    model = shard(config, named, planned, ranks)
    optimizers = Optimizers(config, model)
    settle = fork.settle if fork is not None else None
    if config.train.compile == "on":
        compile_model(recommender.model)
        if fork is not None:
            fork.compile_rule()
    local = config.distributed.pipeline != "prefetch" and is_local(planned.plan, ranks.world_size)
    if local:
        recommender.embeddings.local = LocalLookup(recommender.embeddings.tables)
    gradients: Callable[[Batch], Gradients]
    gradients = forward_backward = ForwardBackward(recommender.embeddings, dense_step, ranks)
    if config.train.capture == "on":
        gradients = CapturedStep(forward_backward, fork, CudaGraphs(ranks.device))
    inputs = input_pipeline(
        config.distributed.pipeline, recommender, ranks.device, exchanges=not local
    )
    step = TrainStep(recommender, gradients, optimizers, ranks, inputs, precision, settle)
    splits = ranks.on_first(lambda: _splits(config.data.path))
    return Session(
        config, schema, ranks, model, recommender, optimizers, step, fork, planned.report, splits
    )


def open_split(
    session: Session,
    split: str,
    *,
    in_file_order: bool = False,
    for_training: bool = False,
    days: Days | None = None,
) -> ParquetReader:
    """The reader of a split: shuffled for ``train`` unless asked, in file order for the others.

    Collective: rank 0 reads the footers for all.

    Args:
        for_training: leave out negatives as ``data.negative_rate`` says, and hide ids as
            ``data.unseen_rate`` does.
        days: those of ``data.days`` if None.
    """
    config, ranks, schema = session.config, session.ranks, session.schema
    training = split == "train"
    days = days or config.data.days_of(split)
    rate = config.data.negative_rate if for_training else 1.0
    negatives = negative_sampling(rate, config.run.seed, schema)
    manifest = ranks.on_first(
        lambda: find_rows(config.data.path, split, schema, days=days, negatives=negatives)
    )
    return ParquetReader(
        config.data.path,
        split,
        schema,
        batch_size=config.train.batch_rows
        if for_training
        else config.eval.batch_size or config.train.batch_rows,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle=training and config.data.shuffle and not in_file_order,
        seed=config.run.seed,
        shuffle_row_groups=config.data.shuffle_row_groups,
        prefetch=config.data.prefetch_batches,
        workers=config.data.workers,
        pin_memory=ranks.device.type == "cuda",
        verify_checksums=config.data.verify_checksums,
        negatives=negatives,
        unseen_rate=config.data.unseen_rate if for_training else 0.0,
        manifest=manifest,
    )


def _splits(path: Place) -> frozenset[str]:
    return frozenset(split for split in ("train", "valid", "test") if has_split(path, split))


def has_split(path: Place, split: str) -> bool:
    return (path / split).is_dir()
