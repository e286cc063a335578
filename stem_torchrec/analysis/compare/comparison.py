"""One comparison, read top to bottom: plan, run, collect, report."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stem_torchrec.analysis.compare.plan import SINGLE_TASK, Plan, PlannedRun, Request, make_plan
from stem_torchrec.analysis.compare.report import Circumstances, make_report
from stem_torchrec.analysis.compare.results import (
    Figures,
    Row,
    count_parameters,
    figures_of,
    summarize,
)
from stem_torchrec.analysis.compare.runs import (
    Action,
    Finished,
    action_for,
    run_all,
    runs_at_a_time,
)
from stem_torchrec.analysis.replay import ahead_figures, day_records
from stem_torchrec.analysis.spread import Spread
from stem_torchrec.analysis.training_process import Ranks, Watch, share_done, unwatched
from stem_torchrec.distributed.ranks import check_devices, device_type
from stem_torchrec.errors import UserError
from stem_torchrec.launch.launcher import default_num_workers, under_torchrun
from stem_torchrec.runs.records import read_records
from stem_torchrec.storage.lock.folder_lock import locked
from stem_torchrec.storage.lock.holder import Holder
from stem_torchrec.storage.place import Place


class Comparison(NamedTuple):
    rows: Sequence[Row]
    failures: Sequence[Finished]
    written: Sequence[Path]


Tell = Callable[[str], None]
"""Gets a line about what goes on."""


def compare(request: Request, command: str, tell: Tell, watch: Watch = unwatched) -> Comparison:
    """Train every combination with every seed where that is not done yet, and write the report.

    Raises:
        UserError: before any run starts, for everything that config, data and the folder tell.
    """
    if under_torchrun():
        raise UserError("compare starts the ranks of its runs itself: use --nproc, not torchrun")
    plan = make_plan(request)
    distributed = plan.runs[0].config.distributed
    nproc = request.nproc or default_num_workers(device_type(distributed))
    check_devices(distributed, nproc)
    actions = [(run, action_for(run, nproc, overwrite=request.overwrite)) for run in plan.runs]
    for combination, why in plan.left_out:
        tell(f"left out: {combination.label}: {why}")
    if SINGLE_TASK not in request.models:
        tell(f"add {SINGLE_TASK} to --models to see the gain of training tasks together")

    with locked("--out", request.out, Holder.this()):
        return _run_and_report(request, command, plan, actions, nproc, tell, watch)


def _run_and_report(
    request: Request,
    command: str,
    plan: Plan,
    actions: Sequence[tuple[PlannedRun, Action]],
    nproc: int,
    tell: Tell,
    watch: Watch,
) -> Comparison:
    progress = Progress(plan.runs, tell)
    ranks = Ranks(nproc, request.parallel)
    with watch(f"{len(plan.runs)} runs", progress.share):
        finished = run_all(actions, request.config, ranks, progress.started, progress.ended)
    failures = [outcome for outcome in finished if outcome.failure is not None]
    failed = [outcome.run for outcome in failures]
    rows = collect(plan, failed)
    report = make_report(
        rows,
        Circumstances(
            command,
            request.seeds,
            _data(plan.runs[0].config.data.path),
            nproc,
            runs_at_a_time(plan.runs),
            plan.left_out,
            [(f.run.label, f.failure or "", str(f.run.log)) for f in failures],
            request.days,
        ),
        over_days([run for run in plan.runs if run not in failed]) if request.days else {},
    )
    return Comparison(rows, failures, report.write(request.out, "compare"))


def collect(plan: Plan, failed: Sequence[PlannedRun]) -> list[Row]:
    """The figures of the runs that did not fail, per combination."""
    results: dict[Any, dict[int, Figures]] = {c: {} for c in plan.combinations}
    parameters = {}
    for run in plan.runs:
        if run.combination not in parameters:
            parameters[run.combination] = count_parameters(run.config)
        if run not in failed:
            results[run.combination][run.seed] = figures_of(read_records(run.dir))
    return summarize(results, parameters)


def over_days(runs: Sequence[PlannedRun]) -> dict[str, dict[str, Spread]]:
    """Combination -> day -> mean AUC over seeds, of replays; untrained weights left out."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for run in runs:
        by_day = found.setdefault(run.combination.label, {})
        judged = ahead_figures(day_records(read_records(run.dir))).get(1, {})
        for day, auc in judged.items():
            by_day.setdefault(day, []).append(auc)
    return {
        label: {day: Spread(tuple(aucs)) for day, aucs in by_day.items()}
        for label, by_day in found.items()
    }


class Progress:
    """A line as each run starts and ends, and how much of all is done."""

    def __init__(self, runs: Sequence[PlannedRun], tell: Tell) -> None:
        self._runs, self._tell = list(runs), tell
        self._running: list[Path] = []
        self._num_ended = 0

    def share(self) -> float:
        """Of the runs, 0 to 100; those under way count by their steps."""
        done = self._num_ended + sum(share_done(run_dir) for run_dir in tuple(self._running))
        return 100 * done / len(self._runs)

    def started(self, run: PlannedRun) -> None:
        self._running.append(run.dir)
        self._tell(f"{self._place(run)}  started")

    def ended(self, outcome: Finished) -> None:
        self._num_ended += 1
        if outcome.run.dir in self._running:
            self._running.remove(outcome.run.dir)
        place = self._place(outcome.run)
        if outcome.failure is not None:
            self._tell(f"{place}  failed: {outcome.failure}")
            return
        auc = figures_of(read_records(outcome.run.dir)).get("auc_mean")
        score = "auc -" if auc is None else f"auc {auc:.4f}"
        time = "there already" if outcome.seconds is None else f"{outcome.seconds:.0f} s"
        self._tell(f"{place}  {score}  {time}")

    def _place(self, run: PlannedRun) -> str:
        return f"[{self._runs.index(run) + 1}/{len(self._runs)}] {run.label}"


def _data(folder: Place) -> dict[str, Any]:
    """Where the data is and what ``prepare`` counted; folders made otherwise have no counts."""
    stats = folder / "stats.json"
    return {"folder": str(folder), **(json.loads(stats.read_text()) if stats.is_file() else {})}
