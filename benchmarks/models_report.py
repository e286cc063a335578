r"""The comparison of models as JSON and Markdown, with one-hot logistic regression beside it.

    python benchmarks/logistic.py DATA/* > DIR/logistic.jsonl
    python benchmarks/models_report.py --trainings DIR/trainings.jsonl \
        --logistic DIR/logistic.jsonl --out RESULTS

``RESULTS/SET.json`` has every figure by task with its seeds and every training's settings,
``RESULTS/tables.md`` a table per set. Mean and standard deviation over seeds; a search that is not
complete is left out.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from models_search import MODELS, SETS, VARIATIONS, DataSet, chosen, defaults, search, variation
from pool import lines_of
from provenance import provenance

Row = dict[str, Any]
_FIGURES = ("auc", "ne", "calibration")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logistic", type=Path, required=True, metavar="FILE")
    parser.add_argument("--trainings", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    done: dict[str, Row] = {}
    for file in options.trainings:
        done |= {key: row for key, row in lines_of(file).items() if "failure" not in row}
    lines = options.logistic.read_text().splitlines()
    baselines = {row["data"]: row for row in map(json.loads, lines)}
    sections = []
    for of in SETS:
        rows = [*contenders(done, of, options.seeds), _logistic_row(baselines[of.name])]
        result = {"provenance": provenance(), "tasks": of.tasks, "rows": rows}
        (options.out / f"{of.name}.json").write_text(json.dumps(result, indent=1) + "\n")
        sections.append(section(of, rows))
    (options.out / "tables.md").write_text("\n\n".join(sections) + "\n")


def contenders(done: Mapping[str, Row], of: DataSet, seeds: int) -> list[Row]:
    """A row for each model whose search is complete, for the defaults and for each variation."""
    rows = []
    for model in MODELS:
        best = chosen(done, of, model)
        if best is not None:
            own = [t for t in search(done, of, model, seeds) if t.settings == best.settings]
            rows.append(_row(model, [done[t.key] for t in own if t.key in done]))
    others = {"defaults": defaults(of, seeds)}
    others |= {name: variation(done, of, name, seeds) for name in VARIATIONS}
    for name, trainings in others.items():
        if found := [done[t.key] for t in trainings if t.key in done]:
            rows.append(_row(f"stem_net, {name}", found))
    return rows


def _row(name: str, runs: Sequence[Row]) -> Row:
    figures = {
        figure: {task: _spread([run["test"][figure][task] for run in runs]) for task in tasks}
        for figure in _FIGURES
        for tasks in [runs[0]["test"][figure]]
    }
    return {
        "name": name,
        "settings": runs[0]["settings"],
        "seeds": [run["seed"] for run in runs],
        "best_epochs": [run["best_epoch"] for run in runs],
        "auc_mean": _spread([run["test"]["auc_mean"] for run in runs]),
        "valid_auc_mean": _spread([run["valid_auc_mean"] for run in runs]),
        **figures,
    }


def _logistic_row(found: Row) -> Row:
    test = found["test"]
    return {
        "name": "logistic regression",
        "settings": {"C": found["C"]},
        "seeds": [],
        "best_epochs": [],
        "auc_mean": [test["auc_mean"], None],
        "valid_auc_mean": [found["valid"]["auc_mean"], None],
        **{figure: {t: [v, None] for t, v in test[figure].items()} for figure in _FIGURES},
    }


def _spread(values: Sequence[float]) -> list[float | None]:
    """Mean, and standard deviation where there is one."""
    return [mean(values), stdev(values) if len(values) > 1 else None]


def section(of: DataSet, rows: Sequence[Row]) -> str:
    """A heading and a table, the best mean AUC first."""
    names = [f"AUC {task}" for task in of.tasks]
    header = ["", "mean AUC", "valid", *names, "NE", "calibration", "rates", "epoch", "seeds"]
    lines = [f"## {of.name}", "", _line(header), _line(["---"] * len(header))]
    for row in sorted(rows, key=lambda row: -row["auc_mean"][0]):
        lines.append(_line(_cells(row, of.tasks)))
    return "\n".join(lines)


def _cells(row: Row, tasks: Sequence[str]) -> list[str]:
    keys = row["settings"]
    rates = [f"{keys[key]:g}" for key in ("embedding.lr", "optim.lr", "C") if key in keys]
    return [
        row["name"],
        _text(row["auc_mean"]),
        _text(row["valid_auc_mean"]),
        *(_text(row["auc"][task]) for task in tasks),
        " ".join(f"{row['ne'][task][0]:.3f}" for task in tasks),
        " ".join(f"{row['calibration'][task][0]:.2f}" for task in tasks),
        ", ".join(rates) or "-",
        " ".join(map(str, row["best_epochs"])) or "-",
        str(len(row["seeds"]) or "-"),
    ]


def _text(spread: Sequence[float | None]) -> str:
    middle, deviation = spread
    return f"{middle:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
