"""The report of a comparison: sections for people, the same figures for programs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stem_torchrec.analysis.compare.plan import SINGLE_TASK, Combination
from stem_torchrec.analysis.compare.plots import (
    auc_against_parameters,
    auc_against_qps,
    auc_over_days,
    gain_bars,
)
from stem_torchrec.analysis.compare.results import Row
from stem_torchrec.analysis.compare.tables import (
    OverDays,
    days_table,
    overview,
    paired_table,
    parameters_table,
    per_task,
)
from stem_torchrec.analysis.origin import hardware, versions
from stem_torchrec.analysis.report import Report, Section, Table

GAIN = (
    "Gain of a task: its test AUC minus that of single_task with the same seed and varied settings "
    "(the MTL gain of the STEM paper); the mean gain is the average over tasks."
)
NO_GAIN = f"There is no gain to report without {SINGLE_TASK} among --models."


class Circumstances(NamedTuple):
    """What a comparison was made of.

    Attributes:
        data: where the data is, and its ``stats.json``.
        runs_at_a_time: at most so many.
        failures: (run, why, log) each.
        days: that the runs went through; None if they were tested.
    """

    command: str
    num_seeds: int
    data: Mapping[str, Any]
    nproc: int
    runs_at_a_time: int
    left_out: Sequence[tuple[Combination, str]]
    failures: Sequence[tuple[str, str, str]]
    days: str | None = None


def make_report(
    rows: Sequence[Row], made_of: Circumstances, over_days: OverDays | None = None
) -> Report:
    tasks = tasks_of(rows)
    return Report(
        "Comparison",
        list(_sections(rows, tasks, made_of, over_days or {})),
        {
            "rows": [_row_data(row) for row in rows],
            **made_of._asdict(),
            "left_out": [{"combination": c.label, "why": why} for c, why in made_of.left_out],
            "failures": [
                dict(zip(("run", "why", "log"), f, strict=True)) for f in made_of.failures
            ],
            "over_days": {
                label: {day: auc.record() for day, auc in by_day.items()}
                for label, by_day in (over_days or {}).items()
            },
            "versions": versions(),
            "hardware": hardware(),
        },
        ", ".join([hardware(), *(f"{name} {v}" for name, v in versions().items())]),
    )


def _sections(
    rows: Sequence[Row], tasks: Sequence[str], made_of: Circumstances, over_days: OverDays
) -> Iterable[Section]:
    seeds = made_of.num_seeds
    has_gain = any("gain_mean" in row.figures for row in rows)
    yield Section("Overview", _how_to_read(made_of, has_gain), overview(rows, seeds))
    if made_of.failures:
        table = Table(["run", "why", "log"], made_of.failures)
        yield Section("Failed runs", "They are in no figure.", table)
    if over_days:
        text = "Mean AUC of each day by the weights of the days before it."
        yield Section("Days", text, days_table(over_days), auc_over_days(over_days))
    yield Section("AUC", "Higher is better.", per_task(rows, "auc", tasks, seeds))
    gains = per_task(rows, "gain", tasks, seeds)
    yield Section("AUC gain", GAIN if has_gain else NO_GAIN, gains, gain_bars(rows, tasks))
    text = (
        "Runs with the same seed read the same rows in the same order; the spread is that of their "
        "differences, which is the one to judge a difference by."
    )
    yield Section("Paired differences", text, paired_table(rows, seeds))
    text = "Mean over labelled rows, nats; lower is better."
    yield Section("Log loss", text, per_task(rows, "logloss", tasks, seeds))
    text = "Log loss over the entropy of the mean label; lower is better."
    yield Section("Normalized entropy", text, per_task(rows, "ne", tasks, seeds))
    text = "Relative to single_task where it is compared, else to the first combination."
    plot = auc_against_parameters(rows)
    yield Section("Parameters", text, parameters_table(rows), plot)
    yield Section("Speed", _speed_text(made_of), plot=auc_against_qps(rows))
    if made_of.left_out:
        lines = [[combination.label, why] for combination, why in made_of.left_out]
        yield Section("Left out", table=Table(["combination", "why"], lines))
    lines = [[name, _text(value)] for name, value in _flat(made_of.data)]
    yield Section("Data", table=Table(["", "value"], lines))


def _how_to_read(made_of: Circumstances, has_gain: bool) -> str:
    count = "1 seed, so without spread" if made_of.num_seeds == 1 else f"{made_of.num_seeds} seeds"
    of = "the test split"
    if made_of.days is not None:
        of = (
            f"the days {made_of.days} but for the first, each judged by the weights of the days "
            "before it, and the mean over days is taken"
        )
    return (
        f"Figures are of {of}: mean ± standard deviation over {count}. Bold is the best "
        "of its column among combinations with all seeds. "
        f"{GAIN if has_gain else NO_GAIN} Command: {made_of.command}"
    )


def _speed_text(made_of: Circumstances) -> str:
    text = (
        f"Samples per second of all ranks (--nproc {made_of.nproc}), warm-up, evaluations and "
        "checkpoints left out. Memory is the peak of rank 0: the process's on a CPU, its tensors' "
        "on a GPU."
    )
    if made_of.runs_at_a_time > 1:
        text += (
            f" Up to {made_of.runs_at_a_time} runs shared this machine at a time: their speeds are "
            "not comparable."
        )
    return text


def tasks_of(rows: Sequence[Row]) -> list[str]:
    names = (name for row in rows for name in row.figures if name.startswith("logloss/"))
    return list(dict.fromkeys(name.removeprefix("logloss/") for name in names))


def _row_data(row: Row) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, found in row.figures.items():
        metric, _, task = name.partition("/")
        if task:
            figures.setdefault(metric, {})[task] = found.record()
        else:
            figures[metric] = found.record()
    return {
        "combination": row.combination.label,
        "model": row.combination.model,
        "rule": row.combination.rule,
        "varied": dict(row.combination.varied),
        "seeds": list(row.seeds),
        "reference": row.reference.label if row.reference else None,
        "parameters": {**row.parameters._asdict(), "total": row.parameters.total},
        **figures,
    }


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
