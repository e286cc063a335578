"""What a replay has found: each day's figures as a table, a page and plots."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from stem_torchrec.analysis.origin import hardware, versions
from stem_torchrec.analysis.report import Report, Section, Table
from stem_torchrec.analysis.spread import NOTHING, plain
from stem_torchrec.config import Config
from stem_torchrec.runs.records import Record, read_records

SHOWN = {"ne": "NE", "auc": "AUC", "calibration": "calibration"}
_HOW = (
    "A day is judged on all its rows by weights that have been trained on the days before and have "
    "seen none of it, and trained on once afterwards. NE is the log loss over the entropy of the "
    "day's mean label (below 1 it beats that mean), calibration the predicted over the observed "
    "positives."
)
_FIRST = " Nothing was learnt before the first day here: its figures are of initial weights."


def write_report(config: Config) -> tuple[Table, list[Path]]:
    """Write ``days.md``, ``.json``, ``.html`` and plots into a replay's folder.

    Returns:
        The table of days and the pages; no page where the folder is in an object store.
    """
    run_dir = config.run.dir
    records = day_records(read_records(run_dir))
    table = days_table(records)
    if not isinstance(run_dir, Path):
        return table, []
    return table, make_report(records).write(run_dir, "days")[:3]


def day_records(records: Sequence[Record]) -> list[Record]:
    """Those of days, in the order in which they were judged."""
    return [record for record in records if record["kind"] == "day"]


def is_untrained(record: Record) -> bool:
    """Whether a day was judged by weights that no day before it has trained."""
    return bool(record["untrained"])


def make_report(records: Sequence[Record]) -> Report:
    text = _HOW + (_FIRST if records and is_untrained(records[0]) else "")
    sections = [Section("Days", text, days_table(records), days_plot(records))]
    if any(record.get("ahead") for record in records):
        text = "A day's mean AUC by weights of the day before it, of two days before it, and so on."
        sections.append(Section("Ahead", text, ahead_table(records), ahead_plot(records)))
    origin = ", ".join([hardware(), *(f"{name} {v}" for name, v in versions().items())])
    return Report("Replay", sections, {"days": list(records)}, origin)


def days_table(records: Sequence[Record]) -> Table:
    """A row per day, and the mean over the days that something was learnt before."""
    tasks = tasks_of(records)
    names = [f"{shown} {task}" for shown in SHOWN.values() for task in tasks]
    rows = [
        [record["day"], f"{record['samples']:,}", *map(_cell, _figures(record, tasks))]
        for record in records
    ]
    means = mean_figures(records)
    rows.append(
        ["mean", "", *(_cell(means.get(f"{name}/{task}")) for name in SHOWN for task in tasks)]
    )
    return Table(["day", "rows", *names], rows)


def mean_figures(records: Sequence[Record]) -> dict[str, float]:
    """Means over days, those that were judged by untrained weights left out.

    Returns:
        ``auc/click``, ``ne/click``, ``auc_mean`` and so on; a figure that no day defines is not
        there.
    """
    found: dict[str, list[float]] = {}
    for record in records:
        if is_untrained(record):
            continue
        for name in ("logloss", *SHOWN):
            for task, value in record[name].items():
                found.setdefault(f"{name}/{task}", []).append(value)
        found.setdefault("auc_mean", []).append(record["auc_mean"])
    known = {name: [v for v in values if v is not None] for name, values in found.items()}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def tasks_of(records: Sequence[Record]) -> list[str]:
    return list(records[0]["auc"]) if records else []


def days_plot(records: Sequence[Record]) -> Figure | None:
    """NE, AUC and calibration over days, a line per task."""
    tasks, shown = tasks_of(records), [r for r in records if not is_untrained(r)]
    if not shown:
        return None
    plot = Figure(figsize=(9, 9))
    for axes, (name, label) in zip(
        plot.subplots(len(SHOWN), sharex=True), SHOWN.items(), strict=True
    ):
        for task in tasks:
            axes.plot([r["day"] for r in shown], _values(shown, name, task), marker="o", label=task)
        axes.set_ylabel(label)
    axes.tick_params(axis="x", labelrotation=45)
    plot.axes[0].legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    return plot


def ahead_table(records: Sequence[Record]) -> Table:
    """Mean AUC of a day by how long before it the weights are from."""
    by_distance = ahead_figures(records)
    days = [record["day"] for record in records]
    rows = [[day, *(_cell(figures.get(day)) for figures in by_distance.values())] for day in days]
    return Table(["day", *(_distance(number) for number in by_distance)], rows)


def ahead_figures(records: Sequence[Record]) -> dict[int, dict[str, float | None]]:
    """Days between weights and day -> day -> mean AUC; untrained weights left out."""
    found: dict[int, dict[str, float | None]] = {}
    for record in records:
        if not is_untrained(record):
            for distance, judged in _judged(record):
                found.setdefault(distance, {})[judged["day"]] = judged["auc_mean"]
    return dict(sorted(found.items()))


def ahead_plot(records: Sequence[Record]) -> Figure | None:
    by_distance = ahead_figures(records)
    if not by_distance:
        return None
    plot = Figure(figsize=(9, 4))
    axes = plot.subplots()
    days = [record["day"] for record in records]
    for distance, figures in by_distance.items():
        values = [_number(figures.get(day)) for day in days]
        axes.plot(days, values, marker="o", label=_distance(distance))
    axes.set_ylabel("mean AUC")
    axes.tick_params(axis="x", labelrotation=45)
    axes.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    return plot


def _judged(record: Record) -> Iterator[tuple[int, Mapping[str, Any]]]:
    yield 1, record
    for distance, judged in record.get("ahead", {}).items():
        yield int(distance), judged


def _distance(number: int) -> str:
    return "1 day ahead" if number == 1 else f"{number} days ahead"


def _figures(record: Record, tasks: Sequence[str]) -> list[float | None]:
    return [record[name].get(task) for name in SHOWN for task in tasks]


def _values(records: Sequence[Record], name: str, task: str) -> list[float]:
    return [_number(record[name].get(task)) for record in records]


def _number(value: float | None) -> float:
    """A plot leaves out what is not defined."""
    return float("nan") if value is None else value


def _cell(value: float | None) -> str:
    return NOTHING if value is None else plain(value)
