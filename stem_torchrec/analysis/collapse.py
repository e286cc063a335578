"""How many dimensions the embedding tables use, over owners, checkpoints and seeds.

N rows of a table, D embedding dimension, σ (D,) singular values of a table.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stem_torchrec.analysis.report import Report, Section, Table
from stem_torchrec.analysis.runs import Model, Run
from stem_torchrec.analysis.spread import Spread
from stem_torchrec.training.finished_run import Tables

_ROWS_AT_ONCE = 65536
_TEXT = (
    "Information abundance is the sum of a table's singular values over the largest (Guo et al., "
    "ICML 2024), effective rank the exponential of the entropy of the singular values' shares (Roy "
    "and Vetterli, EUSIPCO 2007); mean ± standard deviation over seeds. Both lie between 1, where "
    "all rows point in one direction, and the dimension. Rows that training never looked up still "
    "have their initial values, in which no direction stands out."
)


class Collapse(NamedTuple):
    """One table at one checkpoint of one model.

    Attributes:
        rows, dim: N and D.
        abundance, rank: over the model's seeds; see ``information_abundance``, ``effective_rank``.
    """

    model: str
    step: int
    owner: str
    table: str
    rows: int
    dim: int
    abundance: Spread
    rank: Spread


def singular_values(table: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, D) -> (D,), the largest last; those below 1e-8 of it are rounding.

    By the D x D matrix of inner products in float64, for N may be many millions.
    """
    products = np.zeros((table.shape[1], table.shape[1]))
    for start in range(0, len(table), _ROWS_AT_ONCE):
        part = table[start : start + _ROWS_AT_ONCE].astype(np.float64)
        products += part.T @ part
    return np.sqrt(np.maximum(np.linalg.eigvalsh(products), 0.0))


def information_abundance(values: NDArray[np.float64]) -> float | None:
    """Σσ / σ_max (Guo et al., ICML 2024); None for a table of zeros."""
    return float(values.sum() / values.max()) if values.any() else None


def effective_rank(values: NDArray[np.float64]) -> float | None:
    """exp(-Σ p log p), p = σ / Σσ (Roy & Vetterli, EUSIPCO 2007); None for a table of zeros."""
    if not values.any():
        return None
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def analyse(
    models: Sequence[Model],
    steps_of: Callable[[Run], Sequence[int]],
    read_tables: Callable[[Run, int], Tables],
) -> list[Collapse]:
    """Every table of every model at the steps of its runs; one run's tables in memory at a time.

    Where features have a table in common it counts once, by the table's name.
    """
    found = []
    for model in models:
        by_table: dict[tuple[int, str, str], list[_Seen]] = {}
        for run in model.runs:
            for step in steps_of(run):
                for owner, name, seen in _seen(run, read_tables(run, step)):
                    by_table.setdefault((step, owner, name), []).append(seen)
        for key, seeds in sorted(by_table.items(), key=lambda item: item[0][0]):
            abundance = Spread(tuple(information_abundance(seed.values) for seed in seeds))
            rank = Spread(tuple(effective_rank(seed.values) for seed in seeds))
            shape = seeds[0].rows, len(seeds[0].values)
            found.append(Collapse(model.name, *key, *shape, abundance, rank))
    return found


class _Seen(NamedTuple):
    """What is kept of a table."""

    rows: int
    values: NDArray[np.float64]


def _seen(run: Run, tables: Tables) -> Iterator[tuple[str, str, _Seen]]:
    """Owner, table's name and what is kept of it."""
    names = {feature.name: feature.table_name for feature in run.schema.sparse}
    for owner, by_feature in tables.items():
        by_name = {names[feature]: table for feature, table in by_feature.items()}
        for name, table in by_name.items():
            yield owner, name, _Seen(len(table), singular_values(table))


def collapse_table(found: Sequence[Collapse]) -> Table:
    """One row per model, checkpoint, owner and table."""
    columns = ["model", "step", "owner", "table", "rows", "dim", "abundance", "effective rank"]
    rows = [
        [
            *(one.model, str(one.step), one.owner, one.table, f"{one.rows:,}", str(one.dim)),
            *(spread.text(_two_digits) for spread in (one.abundance, one.rank)),
        ]
        for one in found
    ]
    return Table(columns, rows)


def report(found: Sequence[Collapse], origin: str) -> Report:
    """Table, plot and figures."""
    spreads = ("abundance", "rank")
    data = {
        "tables": [
            one._asdict() | {name: getattr(one, name).record() for name in spreads} for one in found
        ]
    }
    sections = [
        Section("Tables", _TEXT, collapse_table(found)),
        Section("Abundance over the dimension", plot=_plot(found)),
    ]
    return Report("How many dimensions the tables use", sections, data, origin)


def _two_digits(value: float) -> str:
    return f"{value:.2f}"


def _plot(found: Sequence[Collapse]) -> Figure:
    """A panel per table, a line over checkpoints per model and owner."""
    tables = list(dict.fromkeys(one.table for one in found))
    columns = min(4, len(tables))
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * lines + 0.8), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis, table in zip(axes, tables, strict=False):
        of_line: dict[str, list[tuple[int, float]]] = {}
        for one in found:
            if one.table == table:
                points = of_line.setdefault(f"{one.model}: {one.owner}", [])
                points.append((one.step, (one.abundance.mean or 0.0) / one.dim))
        for label, points in of_line.items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axis.set_title(table, fontsize=9)
        axis.set_ylim(0, 1)
    for axis in list(axes)[len(tables) :]:
        axis.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    return figure
