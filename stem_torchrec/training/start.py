"""Training from a script or a notebook."""

import logging
import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from stem_torchrec.config import Config
from stem_torchrec.config.given import Source, given_config
from stem_torchrec.errors import UserError, environment_failures, shown
from stem_torchrec.launch.launcher import run_workers, under_torchrun
from stem_torchrec.launch.notices import without_dependency_notices
from stem_torchrec.runs.folder import Existing
from stem_torchrec.runs.records import Record
from stem_torchrec.training.checks import check_start, doubtful_columns, doubtful_settings
from stem_torchrec.training.job import train as train_on_rank
from stem_torchrec.training.run import Run, joined_job, load_run, num_workers_of
from stem_torchrec.training.trainer import Outcome

_log = logging.getLogger(__name__)

_IN_PYTHON = {
    "--resume or --overwrite": "existing='resume' or existing='overwrite'",
    "--resume": "existing='resume'",
    "--overwrite": "existing='overwrite'",
    "--nproc": "nproc",
    "--init-from": "stem-torchrec train --init-from",
}
"""What a message of the command line says, and what a script would write."""


def train(
    config: Source,
    /,
    *,
    existing: Existing = "refuse",
    nproc: int | None = None,
    **overrides: Any,
) -> Run:
    """Train, evaluate and save one run, as ``stem-torchrec train`` does.

    With one process the run is trained in this one, whose logging stays as it is; the records go to
    ``stem_torchrec``'s loggers at INFO, and into the run's folder. More processes import the
    script that starts them, so there the call belongs under ``if __name__ == "__main__":``. Under
    torchrun its ranks are taken, and every rank must call. A signal (Ctrl-C) ends a run with a
    checkpoint; it goes on with ``existing="resume"``.

    Args:
        config: a YAML file or its URL, a mapping of sections, or the ``config`` of a ``Run``.
        existing: what to do with a run that the folder already holds: ``refuse`` it, ``resume`` it
            from its newest checkpoint, or ``overwrite`` it.
        nproc: processes on this machine; by default one on a CPU, else one per GPU.
        overrides: values for some keys, by section, ``train={"epochs": 2}``, or by dotted name,
            ``**{"train.epochs": 2}``. ``stem-torchrec train --help`` lists the keys.

    Returns:
        The run with its last checkpoint.

    Raises:
        UserError: a key, a value or the data is not as it should be; names it and what is allowed.
        CheckpointError: the run has ended without the checkpoint that it should have written.
        EnvironmentFailure: the machine does not suffice: a full disk, no memory.
        WorkerError: one of several processes has failed; holds its traceback.
        KeyboardInterrupt: a signal has ended the run.

    Example:
        >>> import stem_torchrec as st
        >>> run = st.train(
        ...     {"run": {"dir": "runs/mine"}, "data": {"path": "prepared/mine"}},
        ...     model={"expert_widths": [16], "gate_widths": [8], "tower_widths": [8]},
        ...     embedding={"dim": 4},
        ...     train={"batch_size": 256, "max_steps": 8},
        ...     checkpoint={"every": 4, "keep": 2},
        ... )
        >>> run.step
        8
    """
    with _in_words_of_python():
        _refuse_import()
        settled = given_config(config, overrides)
        num_workers = num_workers_of(nproc, settled)
        if not under_torchrun():
            with without_dependency_notices(), environment_failures(settled.run.dir):
                _check(settled, existing, num_workers)
        outcome = run_workers(num_workers, _worker, settled, existing)
        return _trained(settled, outcome)


def _check(config: Config, existing: Existing, num_workers: int) -> None:
    if existing not in get_args(Existing):
        allowed = ", ".join(get_args(Existing))
        raise UserError(f"existing: {shown(existing)}; allowed: {allowed}")
    check_start(config, existing, num_workers, _log.info)


def _worker(config: Config, existing: Existing) -> Outcome:
    """What every rank runs."""
    with joined_job(config) as ranks:
        if ranks.is_first:
            for warning in [*doubtful_settings(config), *doubtful_columns(config)]:
                _log.warning("%s", warning)
        return train_on_rank(config, ranks, existing=existing, listener=_listen)


def _listen(record: Record) -> None:
    _log.info("%s", record)


def _trained(config: Config, outcome: Outcome | None) -> Run:
    if outcome is None:
        raise KeyboardInterrupt("stopped by a signal before the first step")
    if outcome.failure is not None:
        raise outcome.failure
    if outcome.stopped is not None:
        raise KeyboardInterrupt(
            f"stopped by a signal after step {outcome.stopped}; existing='resume' goes on from it"
        )
    return load_run(config.run.dir)


def _refuse_import() -> None:
    """Refuse to start a run while a process of another one imports the script.

    Raises:
        UserError: says what to write.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "nproc: the processes of a run import the script that starts them; "
            'call train under if __name__ == "__main__":'
        )


@contextmanager
def _in_words_of_python() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise type(error)(_translated(str(error), _IN_PYTHON)) from None


def _translated(message: str, words: Mapping[str, str]) -> str:
    for option, argument in words.items():
        message = message.replace(option, argument)
    return message
