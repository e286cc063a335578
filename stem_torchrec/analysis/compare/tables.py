"""The tables of a comparison."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from stem_torchrec.analysis.compare.results import Row, best
from stem_torchrec.analysis.report import Table
from stem_torchrec.analysis.spread import NOTHING, Spread, plain, signed

_HIGHER_IS_BETTER = {
    "logloss": False,
    "ne": False,
    "auc": True,
    "auc_mean": True,
    "gain": True,
    "gain_mean": True,
    "qps": True,
    "peak_memory_bytes": False,
}


OverDays = Mapping[str, Mapping[str, Spread]]
"""Combination -> day -> mean AUC over seeds."""


class Column(NamedTuple):
    heading: str
    figure: str
    text: Callable[[float], str]


def overview(rows: Sequence[Row], num_seeds: int) -> Table:
    """One line per combination: what to choose by."""
    columns = [
        Column("mean AUC", "auc_mean", plain),
        Column("mean gain", "gain_mean", signed),
        Column("samples/s", "qps", whole),
        Column("peak GiB", "peak_memory_bytes", gibibytes),
    ]
    table = figures_table(rows, columns, num_seeds)
    sizes = relative_parameters(rows)
    return Table(
        [table.columns[0], "seeds", *table.columns[1:], "parameters", "relative"],
        [
            [cells[0], f"{len(row.seeds)}/{num_seeds}", *cells[1:], f"{row.parameters.total:,}", r]
            for row, cells, r in zip(rows, table.rows, sizes, strict=True)
        ],
        frozenset((i, j + 1) for i, j in table.best),
    )


def per_task(rows: Sequence[Row], name: str, tasks: Sequence[str], num_seeds: int) -> Table:
    """A metric's column per task, and its mean over tasks where the runs have one."""
    text = signed if name == "gain" else plain
    columns = [Column(task, f"{name}/{task}", text) for task in tasks]
    if name in ("auc", "gain"):
        columns.append(Column("mean", f"{name}_mean", text))
    return figures_table(rows, columns, num_seeds)


def parameters_table(rows: Sequence[Row]) -> Table:
    sizes = relative_parameters(rows)
    cells = [
        [f"{count:,}" for count in (p.tables, p.dense, p.total)]
        for p in (row.parameters for row in rows)
    ]
    return Table(
        ["combination", "tables", "dense", "total", "relative"],
        [[row.combination.label, *c, r] for row, c, r in zip(rows, cells, sizes, strict=True)],
    )


def paired_table(rows: Sequence[Row], num_seeds: int) -> Table:
    """Differences of mean AUC, and in how many of the pairs of seeds they are above zero."""
    columns = [Column("difference of mean AUC", "difference", signed)]
    table = figures_table(rows, columns, num_seeds)
    lines = []
    for row, cells in zip(rows, table.rows, strict=True):
        found = row.figures.get("difference")
        above = sum(value > 0 for value in found.known) if found else 0
        reference = row.reference.label if found and row.reference else NOTHING
        pairs = f"{above} of {len(found.values)}" if found else NOTHING
        lines.append([cells[0], reference, cells[1], pairs])
    return Table(
        ["combination", "against", columns[0].heading, "seeds above 0"],
        lines,
    )


def days_table(over_days: OverDays) -> Table:
    """Mean AUC, a row per day and a column per combination."""
    days = sorted({day for by_day in over_days.values() for day in by_day})
    rows = [[day, *(cell(of.get(day), plain) for of in over_days.values())] for day in days]
    return Table(["day", *over_days], rows)


def figures_table(rows: Sequence[Row], columns: Sequence[Column], num_seeds: int) -> Table:
    """Cells ``mean ± spread``; the best mean of each column that has a better side is marked.

    A figure that a combination has not of every seed is not compared: its mean is of other runs.
    """
    marked = set()
    for j, column in enumerate(columns, start=1):
        higher = _HIGHER_IS_BETTER.get(column.figure.partition("/")[0])
        if higher is None:
            continue
        means = [_mean(row, column.figure, num_seeds) for row in rows]
        marked |= {(i, j) for i in best(means, higher=higher)}
    return Table(
        ["combination", *(column.heading for column in columns)],
        [
            [row.combination.label, *(cell(row.figures.get(c.figure), c.text) for c in columns)]
            for row in rows
        ],
        frozenset(marked),
    )


def relative_parameters(rows: Sequence[Row]) -> list[str]:
    totals = {row.combination: row.parameters.total for row in rows}
    return [
        f"{row.parameters.total / totals[row.reference]:.2f}×" if row.reference else NOTHING
        for row in rows
    ]


def cell(found: Spread | None, text: Callable[[float], str]) -> str:
    return NOTHING if found is None else found.text(text)


def whole(value: float) -> str:
    return f"{value:,.0f}"


def gibibytes(value: float) -> str:
    return f"{value / (1 << 30):.3f}"


def _mean(row: Row, figure: str, num_seeds: int) -> float | None:
    found = row.figures.get(figure)
    return found.mean if found is not None and len(found.known) == num_seeds else None
