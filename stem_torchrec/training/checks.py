"""What config and data can tell before any rank starts."""

import os
import shutil
from collections.abc import Callable, Sequence

import torch

from stem_torchrec.config import Config, Section
from stem_torchrec.data.dense_scale import scale_warnings, train_scales
from stem_torchrec.data.manifest import check_split
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.balance import check_balance
from stem_torchrec.distributed.captured_step import check_capture
from stem_torchrec.distributed.constraints import (
    World,
    check_patterns,
    check_pipeline,
    choices,
    table_rows,
)
from stem_torchrec.distributed.memory_need import check_memory
from stem_torchrec.distributed.optimizers import is_fused
from stem_torchrec.distributed.precision import check_precision
from stem_torchrec.distributed.ranks import check_devices, device_type
from stem_torchrec.distributed.recommender import Recommender
from stem_torchrec.errors import UserError
from stem_torchrec.runs.folder import Existing, check_run, require_run
from stem_torchrec.runs.replayed import Replayed
from stem_torchrec.runs.schema import fitted_schema, selected_schema
from stem_torchrec.runs.trackers.trackers import check_trackers
from stem_torchrec.storage.lock.folder_lock import refuse_locked
from stem_torchrec.storage.lock.holder import Holder
from stem_torchrec.training.session import has_split

_OF_PLATEAUS = {"plateau_factor", "plateau_patience"}


def check_inputs(
    config: Config,
    splits: Sequence[str] | None = None,
    *,
    num_workers: int = 1,
    of_run: bool = False,
) -> None:
    """Raise the UserErrors that config and data can tell before any rank starts.

    Args:
        splits: those a command needs; if None train, and the others where they are.
        of_run: the run in ``run.dir`` is read or gone on with, which has a schema of its own.
    """
    check_data(config, check_settings(config, num_workers, of_run=of_run), splits)


def check_start(
    config: Config,
    existing: Existing,
    num_workers: int,
    say: Callable[[str], None],
    replayed: Replayed | None = None,
) -> None:
    """Raise the UserErrors that can be told before any rank of a training starts.

    Args:
        existing: what to do with a run that the folder already holds.
        num_workers: ranks of this machine.
        say: is told what takes time.
        replayed: the days that are gone through, of the train split alone.
    """
    check_devices(config.distributed, num_workers)
    if existing == "resume":
        require_run("--resume", config.run.dir)
    schema = check_settings(config, num_workers, of_run=existing == "resume")
    check_run(config, existing, replayed)
    refuse_locked("run.dir", config.run.dir, Holder.this())
    say("reading the footers of the data")
    check_data(config, schema, None if replayed is None else ["train"])


def check_settings(config: Config, num_workers: int, *, of_run: bool = False) -> Schema:
    """What config and ``schema.json`` can tell; returns the schema. No data is read.

    Args:
        num_workers: ranks of this machine.
        of_run: as of ``check_inputs``.

    Raises:
        UserError: a name that the schema does not have, or settings that do not fit together or
            this machine; a run's schema that the data does not fit.
    """
    schema = fitted_schema(config).schema if of_run else selected_schema(config)
    with torch.device("meta"):
        recommender = Recommender(config, schema)
    tables = table_rows(recommender)
    check_patterns(config.distributed, tables)
    device = device_type(config.distributed)
    check_precision(config, device)
    check_pipeline(config.distributed, device)
    choices(config.distributed, tables, World(1, 1, device))
    check_balance(config, recommender.model, len(schema.tasks))
    check_capture(config, len(schema.tasks))
    check_compile(config)
    check_judgement(config, schema)
    check_trackers(config.run.trackers)
    check_memory(config, recommender, num_workers)
    return schema


def check_data(config: Config, schema: Schema, splits: Sequence[str] | None = None) -> None:
    """Compare the footers of the splits' files with the schema; see ``check_inputs``.

    Raises:
        UserError: as ``check_split`` does.
    """
    if splits is None:
        others = [split for split in ("valid", "test") if has_split(config.data.path, split)]
        splits = ["train", *others]
    for split in splits:
        check_split(config.data.path, split, schema, config.data.days_of(split))


def check_judgement(config: Config, schema: Schema) -> None:
    """Raise UserError if what judges the valid split can never have a value."""
    keep_best, patience = config.checkpoint.keep_best, config.eval.patience
    waits = config.waits_for_valid and has_split(config.data.path, "valid")
    if keep_best is not None:
        _check_metric("checkpoint.keep_best", keep_best, config, schema)
    elif config.eval.test_checkpoint == "best" and not waits:
        raise UserError(
            "eval.test_checkpoint: 'best', but no best one is kept; set checkpoint.keep_best"
        )
    if patience is not None or waits:
        key = "eval.patience" if config.eval.metric is None else "eval.metric"
        _check_metric(key, config.metric, config, schema)
    if config.optim.decay == "plateau":
        _check_plateau(config, schema)


def _check_plateau(config: Config, schema: Schema) -> None:
    """Raise UserError if no evaluation comes before the last step."""
    _check_metric("optim.decay: 'plateau' goes by eval.metric", config.metric, config, schema)
    every, steps = config.eval.every, config.train.max_steps
    one_epoch = config.train.num_epochs == 1 and not config.waits_for_valid
    if one_epoch if every is None else steps is not None and every >= steps:
        raise UserError(
            "optim.decay: 'plateau' goes by evaluations, but the run has one at its end alone; set "
            "eval.every to fewer steps than it has, or more train.epochs"
        )


def _check_metric(key: str, name: str, config: Config, schema: Schema) -> None:
    if not has_split(config.data.path, "valid"):
        raise UserError(f"{key}: {name!r}, but {config.data.path} has no valid/")
    tasks = schema.task_names
    if name.count("/") == 2 and name.split("/")[2] not in tasks:
        raise UserError(f"{key}: {name!r}; tasks: {', '.join(tasks)}")
    if "/gauc/" in name and schema.group is None:
        raise UserError(f"{key}: {name!r}, but the data has no group column")


def check_compile(config: Config) -> None:
    """Raise UserError if ``train.compile: on`` lacks the compiler that it would call."""
    if config.train.compile != "on":
        return
    compilers = [os.environ.get("CXX", "g++"), os.environ.get("CC", "gcc"), "clang++", "clang"]
    if not any(shutil.which(name) for name in compilers):
        raise UserError(
            "train.compile: 'on', but torch.compile finds no compiler on the PATH "
            f"({', '.join(compilers)}); install one, or allowed: auto, off"
        )


def doubtful_settings(config: Config) -> list[str]:
    """Warnings about settings that are allowed but have no effect, or are expensive here."""
    balance = config.balance
    warnings = [
        f"model.{name} has no effect with model.name {config.model.name}"
        for name in config.model.without_effect()
    ]
    warnings += [
        f"balance.{name} has no effect with balance.rule {balance.rule}"
        for name in balance.without_effect()
    ]
    if balance.gram_rows is not None and balance.boundary != "pooled":
        warnings.append(f"balance.gram_rows has no effect with balance.boundary {balance.boundary}")
    if config.train.precision == "tf32" and device_type(config.distributed) == "cpu":
        warnings.append("train.precision tf32 is of GPUs; on a CPU it is fp32")
    judging = config.eval.patience is not None or config.optim.decay == "plateau"
    if not (judging or config.waits_for_valid):
        warnings += [
            f"eval.{name} has no effect without eval.patience or optim.decay plateau"
            for name in sorted(_changed(config.eval) & {"metric", "min_delta"})
        ]
    of_other_decays = {"decay_steps"} if config.optim.decay == "plateau" else _OF_PLATEAUS
    warnings += [
        f"optim.{name} has no effect with optim.decay {config.optim.decay}"
        for name in sorted(_changed(config.optim) & of_other_decays)
    ]
    ends_early = config.eval.patience is not None and not config.waits_for_valid
    if ends_early and not config.tests_best:
        warnings.append(
            "eval.patience ends a run some evaluations after its best one, and the last weights "
            "are tested; checkpoint.keep_best keeps the best ones and has them tested"
        )
    if not is_fused(config.embedding, device_type(config.distributed)):
        warnings.append(
            "embedding.optimizer adam on CPU is not fused: every step updates every row of every "
            "table; rowwise_adagrad and adagrad touch only the rows of the batch"
        )
    return warnings


def doubtful_columns(config: Config) -> list[str]:
    """Warnings about dense features of a scale that networks do not train on; reads one row group
    at most, or ``stats.json``."""
    try:
        schema = selected_schema(config)
        return scale_warnings(train_scales(config.data.path, schema, config.data.days_of("train")))
    except UserError:
        return []  # who reads the data for training says it


def _changed(section: Section) -> set[str]:
    """Keys that are not at their defaults."""
    fields = type(section).model_fields.items()
    return {
        name
        for name, field in fields
        if getattr(section, name) != field.get_default(call_default_factory=True)
    }
