"""One search, read top to bottom: space, study, trials, report."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial

from stem_torchrec.analysis.training_process import (
    Watch,
    share_done,
    signals_as_exit,
    unwatched,
)
from stem_torchrec.analysis.tune.report import make_report
from stem_torchrec.analysis.tune.space import Space, load_space, own_values, settings
from stem_torchrec.analysis.tune.study import SECONDS, Chosen, Study
from stem_torchrec.analysis.tune.trial import (
    OutOfTime,
    Result,
    TrialRun,
    forget_checkpoints,
    run_trial,
)
from stem_torchrec.config import Config, metric_direction
from stem_torchrec.config.keys import by_key
from stem_torchrec.config.reading import dump_config, load_config
from stem_torchrec.data.manifest import check_split
from stem_torchrec.distributed.ranks import check_devices, device_type
from stem_torchrec.errors import UserError, WorkerError
from stem_torchrec.launch.launcher import default_num_workers, under_torchrun
from stem_torchrec.runs.folder import installed_versions
from stem_torchrec.runs.schema import selected_schema
from stem_torchrec.stopping.parent_watch import ends_its_children
from stem_torchrec.storage.place import replace_text
from stem_torchrec.training.checks import check_inputs
from stem_torchrec.training.session import has_split

BEST = "best.yaml"
_IN_VAIN = 10
"""Failures without any success after which a search ends: it is not the values that fail."""

Tell = Callable[[str], None]
"""Gets a line about what goes on."""


@dataclass(frozen=True)
class Request:
    """What ``tune`` was asked for.

    Attributes:
        trials: how many the study is to have, whoever runs them; None for no limit.
        minutes: for how long this process begins and runs trials; None for no limit.
        seed: of the choices; trials have the config's ``run.seed``.
        overrides: ``--section.key value`` for every trial.
    """

    config: Path
    space: Path
    out: Path
    trials: int | None = None
    minutes: float | None = None
    seed: int = 0
    nproc: int | None = None
    keep_checkpoints: bool = False
    overrides: Sequence[str] = ()


class Tuned(NamedTuple):
    """Attributes:
    best: the best trial of the study so far.
    written: the report's files, and the best trial's config.
    """

    metric: str
    best: FrozenTrial
    failures: int
    written: Sequence[Path]


def tune(request: Request, command: str, tell: Tell, watch: Watch = unwatched) -> Tuned:
    """Run trials until the study has enough of them or the time is over, and write the report.

    Raises:
        UserError: before any trial starts, for everything that config, space, data and folder tell.
        WorkerError: every trial fails.
    """
    base, space, nproc = _checked(request)
    study = Study(request.out, space, request.seed, maximize=metric_direction(base.metric) > 0)
    study.claim(_made_of(request, base, space, nproc), own_values(space, base))
    search = _Search(request, base, study, nproc, tell)
    with signals_as_exit(), ends_its_children(), watch("trials", search.share):
        search.run()
    best = study.best
    if best is None:
        raise WorkerError("no trial has ended with a value")
    with study.turn():  # another process may be about to write the same files
        written = make_report(study, space, base, command).write(request.out, "tune")
        _write_best(request, best, base.metric)
    failures = sum("failure" in trial.user_attrs for trial in study.trials)
    return Tuned(base.metric, best, failures, [*written, request.out / BEST])


def _checked(request: Request) -> tuple[Config, Space, int]:
    if under_torchrun():
        raise UserError("tune starts the ranks of its runs itself: use --nproc, not torchrun")
    if request.trials is None and request.minutes is None:
        raise UserError("tune: --trials or --minutes is required, or both")
    base = load_config(request.config, request.overrides)
    if not has_split(base.data.path, "valid"):
        raise UserError(f"data.path: {str(base.data.path)!r} has no valid split to judge trials by")
    space = load_space(request.space, request.config, request.overrides)
    nproc = request.nproc or default_num_workers(device_type(base.distributed))
    check_devices(base.distributed, nproc)
    check_inputs(base, num_workers=nproc)
    return base, space, nproc


def _made_of(request: Request, base: Config, space: Space, nproc: int) -> dict[str, Any]:
    """What the trials of a study have in common, by name."""
    found = {f"--space {name}": part.record() for name, part in space.items()}
    apart = {"run.dir", "run.trackers", "data.path", *space}
    found |= {key: value for key, value in by_key(base).items() if key not in apart}
    schema, path = selected_schema(base), base.data.path
    content = json.dumps(schema.content(), sort_keys=True)
    found["data.path, schema"] = hashlib.sha256(content.encode()).hexdigest()[:16]
    for split in ("train", "valid"):
        rows = check_split(path, split, schema, base.data.days_of(split))
        found[f"data.path, files of {split}"] = f"{rows.num_rows} rows, {rows.files[:16]}"
    found |= {"--nproc": nproc, "--seed": request.seed}
    return json.loads(json.dumps(found))


class _Search:
    """The trials of this process, one after the other."""

    def __init__(
        self, request: Request, base: Config, study: Study, nproc: int, tell: Tell
    ) -> None:
        self._request, self._base, self._study = request, base, study
        self._nproc, self._tell = nproc, tell
        minutes = request.minutes
        self._end_s = None if minutes is None else time.monotonic() + 60 * minutes
        self._failed = 0
        self._start_s = time.monotonic()
        self._num_over = 0
        self._running: Path | None = None

    def share(self) -> float:
        """Of the trials or of the minutes, whichever is more, 0 to 100."""
        shares = [0.0]
        if self._end_s is not None:
            passed = time.monotonic() - self._start_s
            shares.append(100 * passed / (self._end_s - self._start_s))
        if self._request.trials is not None:
            running = share_done(self._running) if self._running is not None else 0.0
            shares.append(100 * (self._num_over + running) / self._request.trials)
        return min(100.0, max(shares))

    def run(self) -> None:
        while self._end_s is None or time.monotonic() < self._end_s:
            chosen = self._study.next(self._request.trials)
            if chosen is None:
                return
            self._running = self._request.out / "runs" / chosen.folder
            try:
                result = self._run(chosen)
            except OutOfTime:
                self._study.give_back(chosen)
                self._tell(f"trial {chosen.number}  out of time; the same command goes on with it")
                return
            except BaseException:
                self._study.give_back(chosen)
                raise
            self._running = None
            self._num_over = sum(trial.state.is_finished() for trial in self._study.trials)
            self._count(result)

    def _run(self, chosen: Chosen) -> Result:
        words = [setting.removeprefix("--") for setting in settings(chosen.values)]
        self._tell(f"trial {chosen.number}  {'  '.join(words)}")
        start = time.monotonic()
        try:
            run = self._trial_run(chosen)
            result = run_trial(chosen, run, self._nproc, self._end_s)
        except UserError as error:  # values that do not go together
            result = Result(None, str(error), 0)
            self._end(chosen, result, 0.0)
            return result
        self._end(chosen, result, time.monotonic() - start)
        if not self._request.keep_checkpoints:
            forget_checkpoints(run)
        return result

    def _trial_run(self, chosen: Chosen) -> TrialRun:
        place = f"--run.dir={self._request.out / 'runs' / chosen.folder}"
        words = [*self._request.overrides, place, *settings(chosen.values)]
        config = load_config(self._request.config, words)
        check_inputs(config, splits=(), num_workers=self._nproc)
        return TrialRun(config)

    def _end(self, chosen: Chosen, result: Result, seconds: float) -> None:
        chosen.trial.set_user_attr(SECONDS, seconds)
        name = f"trial {chosen.number}"
        if result.failure is not None:
            self._study.fail(chosen, result.failure)
            self._tell(f"{name}  failed: {result.failure}")
        elif result.value is None:
            self._study.prune(chosen)
            self._tell(f"{name}  pruned after {result.evaluations} evaluations  {seconds:.0f} s")
        else:
            self._study.finish(chosen, result.value)
            self._tell(f"{name}  {self._base.metric} {result.value:.4f}  {seconds:.0f} s")

    def _count(self, result: Result) -> None:
        """End a search in vain.

        Raises:
            WorkerError: one trial after the other has failed, and none has a value.
        """
        self._failed = self._failed + 1 if result.failure is not None else 0
        if self._failed >= _IN_VAIN and self._study.best is None:
            raise WorkerError(f"all of {self._failed} trials failed; the last: {result.failure}")


def _write_best(request: Request, best: FrozenTrial, metric: str) -> None:
    """The best trial's config, with the run's folder of the config file."""
    config = load_config(request.config, [*request.overrides, *settings(best.params)])
    note = f"# The best of a search: trial {best.number}, {metric} {best.value:.4f}.\n"
    replace_text(request.out / BEST, note + dump_config(config, installed_versions()))
