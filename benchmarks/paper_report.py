"""What ``paper.py`` found, as the paper's tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from provenance import provenance

from stem_torchrec.analysis.compare.plan import Combination, PlannedRun
from stem_torchrec.analysis.compare.report import tasks_of
from stem_torchrec.analysis.compare.results import (
    Figures,
    Parameters,
    Row,
    count_parameters,
    figures_of,
    summarize,
)
from stem_torchrec.analysis.compare.tables import cell, per_task
from stem_torchrec.analysis.report import Report, Section, Table
from stem_torchrec.analysis.spread import NOTHING, Spread, plain, signed
from stem_torchrec.runs.records import read_records

Trained = Mapping[str, Sequence[PlannedRun]]

AS_CONFIGURED = {
    "stop_gradient": "stem_net with stop-gradient",
    "gate_input": "stem_net, gate_input=both",
    "fields": "stem_net, task_specific_features=all",
}
HEADINGS = {
    "models": "Models",
    "stop_gradient": "Stop-gradient",
    "gate_input": "Gate input",
    "fields": "Fields with tables per task",
}


@dataclass(frozen=True)
class Subsets:
    """The report of ``analyze negative-transfer`` in a folder."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "negative_transfer.json"

    def is_of(self, runs: Sequence[PlannedRun]) -> bool:
        """Whether it is there, of these runs as they are."""
        if not self.file.is_file():
            return False
        made, dirs = self.file.stat().st_mtime, [str(run.dir) for run in runs]
        found = [run["run"] for run in json.loads(self.file.read_text())["runs"]]
        newest = max((run.dir / "metrics.jsonl").stat().st_mtime for run in runs)
        return sorted(found) == sorted(dirs) and newest <= made

    def table(self) -> Table:
        """A row per task, subset and model: AUC, and what it is above single-task networks."""
        scores = json.loads(self.file.read_text())["scores"]
        return Table(
            ["task", "subset", "model", "AUC", "gain"],
            [[score["task"], score["subset"], score["model"], *_texts(score)] for score in scores],
        )


class SetResult(NamedTuple):
    """One data set: rows by table, the subsets of figure 1, and the runs that failed."""

    name: str
    rows: Mapping[str, Sequence[Row]]
    subsets: Subsets | None
    failures: Sequence[str]


def join(trained: Trained, table: str) -> list[Row]:
    """The rows of a table, with gains over the single-task runs of the models' comparison.

    An ablation's first row is STEM-Net as configured, which is trained among the models.
    """
    named = [(run.combination.model, run) for run in trained["models"]]
    if table != "models":
        single = [(model, run) for model, run in named if model == "single_task"]
        own = [(AS_CONFIGURED[table], run) for model, run in named if model == "stem_net"]
        named = [*single, *own, *((_varied(run), run) for run in trained[table])]
    results: dict[Combination, dict[int, Figures]] = {}
    parameters: dict[Combination, Parameters] = {}
    for name, run in named:
        combination = Combination(name, "equal")
        if combination not in parameters:
            parameters[combination] = count_parameters(run.config)
        results.setdefault(combination, {})[run.seed] = figures_of(read_records(run.dir))
    return summarize(results, parameters)


def _varied(run: PlannedRun) -> str:
    settings = [f"{key.partition('.')[2]}={text}" for key, text in run.combination.varied]
    return ", ".join([run.combination.model, *settings])


def write_report(results: Sequence[SetResult], out: Path) -> list[Path]:
    """``paper.md``, ``.json`` and ``.html``; returns their paths."""
    made_on = provenance()
    data = {"sets": [_data(result) for result in results], "provenance": made_on}
    origin = ", ".join(f"{key} {value}" for key, value in made_on.items())
    return Report("The tables of the STEM paper", list(_sections(results)), data, origin).write(
        out, "paper"
    )


def _sections(results: Sequence[SetResult]) -> Iterator[Section]:
    if any("models" in result.rows for result in results):
        text = (
            "Test split, mean ± standard deviation over seeds. Gain: AUC above that of single_task "
            "with the same seed, mean over tasks."
        )
        yield Section("Models on all sets", text, _models_by_sets(results))
    for result in results:
        for table, rows in result.rows.items():
            seeds = max((len(row.seeds) for row in rows), default=0)
            heading, tasks = f"{HEADINGS[table]}: {result.name}", tasks_of(rows)
            yield Section(f"{heading}, AUC", "", _named(per_task(rows, "auc", tasks, seeds)))
            yield Section(f"{heading}, gain", "", _named(per_task(rows, "gain", tasks, seeds)))
            if table == "fields":
                yield Section(f"{heading}, sizes", _SIZES, _sizes(rows))
        if result.subsets is not None:
            text = f"More in [{result.subsets.folder.name}]({result.name}/subsets)."
            yield Section(f"Figure 1's subsets: {result.name}", text, result.subsets.table())
        if result.failures:
            lines = [[failure] for failure in result.failures]
            yield Section(f"Failed: {result.name}", "In no figure.", Table(["run"], lines))


_SIZES = "Numbers in tables and networks; relative to task_specific_features=none, PLE's size."


def _models_by_sets(results: Sequence[SetResult]) -> Table:
    by_set = {
        result.name: {row.combination.model: row.figures for row in result.rows["models"]}
        for result in results
        if "models" in result.rows
    }
    models = dict.fromkeys(model for figures in by_set.values() for model in figures)
    columns = [f"{name} {what}" for name in by_set for what in ("AUC", "gain")]
    lines = []
    for model in models:
        found = [figures.get(model, {}) for figures in by_set.values()]
        cells = [
            text
            for figures in found
            for text in (
                cell(figures.get("auc_mean"), plain),
                cell(figures.get("gain_mean"), signed),
            )
        ]
        lines.append([model, *cells])
    return Table(["model", *columns], lines)


def _named(table: Table) -> Table:
    """A comparison's table without the name of the rule, which is the same in all rows."""
    rows = [[line[0].removesuffix(" equal"), *line[1:]] for line in table.rows]
    return Table(["", *table.columns[1:]], rows, table.best)


def _sizes(rows: Sequence[Row]) -> Table:
    none = [r.parameters.total for r in rows if r.combination.model.endswith("=none")]
    lines = []
    for row in rows:
        relative = f"{row.parameters.total / none[0]:.2f}" if none else NOTHING
        counts = [f"{count:,}" for count in (row.parameters.tables, row.parameters.dense)]
        lines.append([row.combination.model, *counts, relative])
    return Table(["", "tables", "dense", "relative"], lines)


def _texts(score: Mapping[str, Any]) -> list[str]:
    return [
        cell(Spread(tuple(score[name]["values"])), form) if name in score else ""
        for name, form in (("auc", plain), ("auc_gain", signed))
    ]


def _data(result: SetResult) -> dict[str, Any]:
    tables = {
        table: [
            {
                "row": row.combination.model,
                "seeds": list(row.seeds),
                "parameters": row.parameters._asdict() | {"total": row.parameters.total},
                "figures": {name: spread.record() for name, spread in row.figures.items()},
            }
            for row in rows
        ]
        for table, rows in result.rows.items()
    }
    subsets = result.subsets and json.loads(result.subsets.file.read_text())
    return {
        "set": result.name,
        "tables": tables,
        "subsets": subsets,
        "failures": list(result.failures),
    }
