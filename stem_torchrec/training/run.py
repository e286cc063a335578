"""A run that has been trained, for scripts and notebooks: its metrics, predictions and tables.

Every question joins a job of its own and leaves it, so nothing is held between two of them: the
checkpoint is read, all its bytes checked, each time.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from stem_torchrec import checkpoint
from stem_torchrec.config import Config
from stem_torchrec.config.given import given_config
from stem_torchrec.data.schema import SPLITS, Feature
from stem_torchrec.distributed.ranks import Ranks, check_devices, device_type, ranks_of_job
from stem_torchrec.errors import (
    UserError,
    WorkerError,
    did_you_mean,
    environment_failures,
    shown,
)
from stem_torchrec.launch.launcher import default_num_workers, run_workers, under_torchrun
from stem_torchrec.launch.notices import without_dependency_notices
from stem_torchrec.runs.folder import require_run
from stem_torchrec.runs.record_table import record_table
from stem_torchrec.runs.records import Record, read_records
from stem_torchrec.runs.schema import fitted_schema
from stem_torchrec.storage.place import Place, place_of
from stem_torchrec.training.checks import check_inputs
from stem_torchrec.training.finished_run import Tables, evaluate_run, predict_run, tables_of_run


class Run:
    """A run that has been trained, with one of its checkpoints. ``load_run`` makes one.

    Attributes:
        config: its settings, ``config.train.batch_size`` and so on; not to be changed.
        step: steps after which the checkpoint was saved.

    Example:
        >>> import stem_torchrec as st
        >>> run = st.load_run("runs/mine")
        >>> run
        Run('runs/mine', step 8)
        >>> run.config.model.name
        'stem_net'
    """

    def __init__(self, config: Config, step: int) -> None:
        self.config = config
        self.step = step

    def __repr__(self) -> str:
        return f"Run({str(self.config.run.dir)!r}, step {self.step})"

    def evaluate(self, split: str = "test", *, nproc: int | None = None) -> Record:
        """Exact metrics of a split, every row once.

        Args:
            split: ``train``, ``valid`` or ``test``.
            nproc: processes on this machine; by default one on a CPU, else one per GPU. One runs in
                this process. Under torchrun its ranks are taken, and every rank must call.

        Returns:
            The eval record: ``logloss`` (nats), ``ne``, ``auc``, ``gauc``, ``calibration`` and
            ``labels`` by task, ``auc_mean``, ``split``, ``step``, ``epoch`` and ``samples``. What
            the labels do not define is None.

        Raises:
            UserError: the split is missing or damaged, or its ids mean something else than the
                run's; the checkpoint is damaged.

        Example:
            >>> record = run.evaluate("valid")
            >>> record["samples"], sorted(record["auc"])
            (301, ['click', 'like'])
        """
        self._check(split)
        num_workers = num_workers_of(nproc, self.config)
        if not under_torchrun():
            check_devices(self.config.distributed, num_workers)
        record = run_workers(num_workers, _evaluate, self.config, split, self.step)
        if record is None:
            raise WorkerError("ended by a signal")
        return record

    def predict(self, split: str = "test") -> pa.Table:
        """The probability of every task for every row of a split; in this process.

        Returns:
            A float64 column per task, by its name, with values in [0, 1]; rows in the order of the
            split's files by path, and of the rows in each.

        Raises:
            UserError: as ``evaluate``; or this is one of several ranks of torchrun.

        Example:
            >>> table = run.predict("test")
            >>> table.num_rows, table.column_names
            (401, ['click', 'like'])
        """
        self._check(split)
        tasks = self._schema_tasks()
        with _alone(self.config) as ranks:
            logits = predict_run(self.config, ranks, split, self.step).logits
        probabilities = np.exp(-np.logaddexp(0.0, -logits))
        return pa.table({task: probabilities[:, t] for t, task in enumerate(tasks)})

    def tables(self, *features: str) -> Tables:
        """Embedding tables, whole, on the host; in this process.

        Args:
            features: id and bag features by name; all if none is given.

        Returns:
            Owner (``shared`` or a task) → feature → (rows, D) float32, where row i belongs to id i.
            An owner has the features that it has tables for; features with a common table share
            the array.

        Raises:
            UserError: a feature is not the run's, or is dense; else as ``predict``.

        Example:
            >>> tables = run.tables("user_id")
            >>> sorted(tables), tables["click"]["user_id"].shape
            (['click', 'like', 'shared'], (51, 4))
        """
        wanted = self._features(features)
        with _alone(self.config) as ranks:
            return tables_of_run(self.config, ranks, wanted, self.step)

    def metrics(self) -> pa.Table:
        """The records of the run so far, ``metrics.jsonl``, as a table.

        Returns:
            One row per record, with ``kind`` (``train``, ``eval``, …), ``split``, ``step`` and
            ``epoch``, and a column for each figure: ``qps`` (samples/s), ``loss/click`` (nats),
            ``auc/click``, … Null where a record has none.

        Example:
            >>> records = run.metrics()
            >>> records.column_names[:4]
            ['kind', 'split', 'step', 'epoch']
            >>> records.filter(records["split"].combine_chunks().is_valid()).num_rows
            2
        """
        with environment_failures(self.config.run.dir):
            return record_table(read_records(self.config.run.dir))

    def _check(self, split: str) -> None:
        if split not in SPLITS:
            hint = did_you_mean(split, SPLITS)
            raise UserError(f"split: {shown(split)}; allowed: {', '.join(SPLITS)}{hint}")
        if not under_torchrun():
            with without_dependency_notices(), environment_failures():
                check_inputs(self.config, splits=[split], of_run=True)

    def _schema_tasks(self) -> tuple[str, ...]:
        return fitted_schema(self.config).schema.task_names

    def _features(self, names: tuple[str, ...]) -> list[Feature]:
        known = {f.name: f for f in fitted_schema(self.config).schema.sparse}
        if unknown := [name for name in names if name not in known]:
            hint = did_you_mean(unknown[0], known)
            raise UserError(
                f"tables: {shown(unknown[0])} is not an id or bag feature of the run; it has "
                f"{', '.join(known)}{hint}"
            )
        return [known[name] for name in names or known]


def load_run(folder: str | Place, checkpoint: checkpoint.Choice = "last", **overrides: Any) -> Run:
    """A run that has been trained, from its folder.

    Args:
        folder: the run's folder, or its URL in a store.
        checkpoint: ``last``, ``best`` by the metric of ``checkpoint.keep_best``, or a step.
        overrides: other values where and how the run is read, by section: ``data={"path": ...}``
            for data that has moved, ``distributed={"device": "cpu"}``.

    Raises:
        UserError: there is no run in the folder, or no such checkpoint; says which there are.

    Example:
        >>> import stem_torchrec as st
        >>> st.load_run("runs/mine", checkpoint=4).step
        4
        >>> st.load_run("runs/mine", checkpoint=5)
        Traceback (most recent call last):
        stem_torchrec.errors.UserError: ...there are those of step 4, 8 (last)
    """
    run_dir = place_of(folder)
    require_run("load_run", run_dir)
    here: Mapping[str, Any] = {**overrides, "run.dir": str(run_dir)}
    config = given_config(run_dir / "config.yaml", here)
    return Run(config, _chosen_step(run_dir, checkpoint))


def num_workers_of(nproc: int | None, config: Config) -> int:
    """How many processes to start on this machine.

    Raises:
        UserError: ``nproc`` is not a number of at least 1.
    """
    if nproc is None:
        return default_num_workers(device_type(config.distributed))
    if type(nproc) is not int or nproc < 1:
        raise UserError(f"nproc: {shown(nproc)} is not a number of at least 1")
    return nproc


def _chosen_step(run_dir: Place, choice: checkpoint.Choice) -> int:
    with environment_failures(run_dir):
        return checkpoint.chosen_step(run_dir, choice)


@contextmanager
def joined_job(config: Config) -> Iterator[Ranks]:
    """This process as a rank of a job for a block; the machine's failures are told in a line.

    Collective. No log is configured and no output stream changed: the process may be anybody's.
    """
    job = ranks_of_job(config.distributed)
    with without_dependency_notices(), environment_failures(), job as ranks:
        yield ranks


@contextmanager
def _alone(config: Config) -> Iterator[Ranks]:
    if under_torchrun():
        raise UserError("predict and tables: in one process; start it without torchrun")
    with joined_job(config) as ranks:
        yield ranks


def _evaluate(config: Config, split: str, step: int) -> Record:
    """What every rank runs."""
    with joined_job(config) as ranks:
        return evaluate_run(config, ranks, split, step)
