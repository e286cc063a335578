"""Where which model and which balancing rule helps: generated worlds x models x rules, over seeds.

    python benchmarks/regimes.py --out DIR --seeds 3 --processes 2

Every seed has a world of its own (``DIR/data/WORLD/seedN``, made when it is first needed) and
first weights of its own. A training is judged at the epoch that is best on the valid split; of
``static``'s grid, which has equal weights in it, the point with the highest mean there counts. Each
training that has ended is a line of ``DIR/trainings.jsonl``: interrupted, or ended by
``--limit-s``, the same command goes on where it stopped. Writes ``regimes.json`` (every figure of
the test split with its seeds, what was left out or failed, and the best that is possible) and
``regimes.png`` (gain in mean AUC over single-task networks with the same seed). ``--redraw`` makes
both of what is there.
"""

import argparse
import fcntl
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from pool import Job, as_command, at_best, learning_curve, lines_of, work_off
from provenance import provenance
from regimes_grid import (
    DATA,
    DATA_OF_WORLD,
    MODELS,
    RULES,
    STATIC,
    WORLDS,
    Cell,
    Training,
    trainings,
)
from regimes_map import heat_map

from stem_torchrec.analysis.compare.plan import SINGLE_TASK
from stem_torchrec.config.reading import load_config, load_options
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.synthetic.prepare import (
    BEST_FILE,
    TRUTH_FOLDER,
    SyntheticConfig,
    prepare_synthetic,
)

Record = dict[str, Any]
Figures = dict[str, dict[str, float]]
"""Figure -> seed -> value."""

CONFIG = Path(__file__).parents[1] / "configs" / "contradiction.yaml"
SETTINGS = (
    *("train.batch_size=2048", "train.epochs=4", "eval.batch_size=8192", "embedding.dim=4"),
    *("embedding.lr=0.2", "optim.lr=0.005", "optim.decay=cosine", "distributed.device=cpu"),
    *("model.expert_widths=[32, 16]", "model.gate_widths=[16]", "model.tower_widths=[16]"),
)


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    if not options.redraw:
        train_all(options)
    result = study(options)
    (options.out / "regimes.json").write_text(json.dumps(result, indent=1) + "\n")
    heat_map(result["cells"], options.out / "regimes.png")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS, metavar="WORLD")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time; 0: in here")
    parser.add_argument("--limit-s", type=float, help="begin no training after so many seconds")
    parser.add_argument("--data", nargs="*", default=[], metavar="key=value", help="of each world")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value")
    parser.add_argument("--redraw", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    for pair in (*options.data, *options.set):
        if "=" not in pair:
            parser.error(f"{pair!r}; expected key=value")
    return options


def train_all(options: argparse.Namespace) -> None:
    """Every training that has no line yet.

    Raises:
        UserError: a key or value is not allowed, or a world was made with other options.
    """
    for world in options.worlds:
        for seed in range(options.seeds):
            check_world(options, world, seed)
    wanted = wanted_of(options)
    for training in {t.settings["model.name"] + t.point: t for t in wanted}.values():
        load_config(options.config, overrides(options, training))
    options.out.mkdir(parents=True, exist_ok=True)
    note_provenance(options.out / "provenance.json")
    jobs = [Job(training.key, training) for training in wanted]
    do = partial(train, options)
    work_off(
        jobs,
        do,
        options.out / "trainings.jsonl",
        processes=options.processes,
        limit_s=options.limit_s,
        fork=True,
    )


def wanted_of(options: argparse.Namespace) -> list[Training]:
    return trainings(options.worlds, options.models, options.rules, options.seeds)


def train(options: argparse.Namespace, training: Training) -> Record:
    """The figures of one training at its best epoch, by split."""
    prepare(options, training.cell.world, training.seed)
    curve = learning_curve(load_config(options.config, overrides(options, training)))
    return {
        "epochs": [r["auc_mean"] for r in curve if r["split"] == "valid"],
        "best": at_best(curve),
    }


def overrides(options: argparse.Namespace, training: Training) -> list[str]:
    data = folder_of(options, training.cell.world, training.seed)
    pairs = {"run.dir": options.out / "none", "data.path": data} | training.settings
    return [
        *(f"--{setting}" for setting in SETTINGS),
        *(f"--{key}={text}" for key, text in pairs.items()),
        *(f"--{setting}" for setting in options.set),
    ]


def folder_of(options: argparse.Namespace, world: str, seed: int) -> Path:
    folder: Path = options.out / "data" / world / f"seed{seed}"
    return folder


def options_of(options: argparse.Namespace, world: str, seed: int) -> dict[str, str]:
    """What a world is made with."""
    given = dict(pair.split("=", 1) for pair in options.data)
    return {"world": world, "seed": str(seed)} | DATA | DATA_OF_WORLD[world] | given


def check_world(options: argparse.Namespace, world: str, seed: int) -> SyntheticConfig:
    """The generator's options.

    Raises:
        UserError: they are not allowed, or it is there with others.
    """
    folder, wanted = folder_of(options, world, seed), options_of(options, world, seed)
    described = folder.with_suffix(".json")
    if described.is_file() and json.loads(described.read_text()) != wanted:
        raise UserError(f"{folder} was made with other options; choose another --out")
    return load_options(SyntheticConfig, [f"--{key}={text}" for key, text in wanted.items()])


def prepare(options: argparse.Namespace, world: str, seed: int) -> None:
    """Make a world if it is not there; other processes wait for it."""
    folder = folder_of(options, world, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "schema.json").is_file():
            config = check_world(options, world, seed)
            prepare_synthetic(config, folder)
            wanted = options_of(options, world, seed)
            folder.with_suffix(".json").write_text(json.dumps(wanted, indent=2) + "\n")


def note_provenance(file: Path) -> None:
    """Add this machine and commit to those that have made the lines, if it is another."""
    noted, own = json.loads(file.read_text()) if file.is_file() else [], provenance()
    if own not in noted:
        file.write_text(json.dumps([*noted, own], indent=1) + "\n")


def study(options: argparse.Namespace) -> Record:
    """Every cell of every world, of the trainings that have ended, and where they come from."""
    lines = lines_of(options.out / "trainings.jsonl")
    wanted = wanted_of(options)
    cells: list[Record] = []
    for world in options.worlds:
        found = []
        for model in options.models:
            for rule in options.rules:
                cell = Cell(world, model, rule)
                found.append(cell_record(cell, [t for t in wanted if t.cell == cell], lines, found))
        cells += with_gains(found)
    return {
        "worlds": {world: about_world(options, world) for world in options.worlds},
        "settings": [*SETTINGS, *options.set],
        "cells": cells,
        "provenance": json.loads((options.out / "provenance.json").read_text()),
    }


def about_world(options: argparse.Namespace, world: str) -> Record:
    """Its options, and the best figures that are possible by seed."""
    best = {
        str(seed): json.loads(file.read_text())
        for seed in range(options.seeds)
        if (file := folder_of(options, world, seed) / TRUTH_FOLDER / BEST_FILE).is_file()
    }
    return {"options": DATA | DATA_OF_WORLD[world], "best": best}


def cell_record(
    cell: Cell,
    of_cell: Sequence[Training],
    lines: Mapping[str, Record],
    before: Sequence[Record],
) -> Record:
    """The figures of a cell; of a grid, those of its best point, equal weights included.

    Args:
        before: cells of the same world, the one with equal weights among them.
    """
    record: Record = {**cell._asdict(), "left_out": cell.left_out, "failures": [], "figures": {}}
    by_point: dict[str, Figures] = {}
    for training in of_cell:
        line = lines.get(training.key, {"failure": "not trained yet"})
        if "failure" in line:
            record["failures"].append(f"{training.key}: {line['failure']}")
        else:
            add_figures(by_point.setdefault(training.point, {}), training.seed, line["best"])
    if cell.rule == STATIC:
        equal = [c for c in before if (c["model"], c["rule"]) == (cell.model, "equal")]
        by_point |= {c["rule"]: c["figures"] for c in equal if c["figures"]}
    if by_point:
        chosen = max(by_point, key=lambda point: mean(by_point[point]["valid_auc_mean"].values()))
        record |= {"figures": dict(by_point[chosen])}
        if cell.rule == STATIC:
            record["chosen"] = chosen
    return record


def add_figures(figures: Figures, seed: int, best: Mapping[str, Record]) -> None:
    """Those of the test split and the valid split's ``valid_auc_mean``, of one seed."""
    test = best["test"]
    found = {"auc_mean": test["auc_mean"], "valid_auc_mean": best["valid"]["auc_mean"]}
    found["epoch"] = test["epoch"]
    for name in ("auc", "ne", "calibration"):
        found |= {f"{name}/{task}": value for task, value in test[name].items()}
    for name, values in (best["valid"].get("balance") or {}).items():
        for position, value in enumerate(values):
            found[f"balance/{name}/{position}"] = value
    for name, value in found.items():
        if value is None:  # no label of one kind
            continue
        figures.setdefault(name, {})[str(seed)] = value


def with_gains(cells: list[Record]) -> list[Record]:
    """Cells of one world with ``gain/TASK`` and ``gain_mean``: AUC above that of single-task
    networks with the same seed; none without these."""
    single = [c["figures"] for c in cells if (c["model"], c["rule"]) == (SINGLE_TASK, "equal")]
    reference = single[0] if single else {}
    for cell in cells:
        for name, values in list(cell["figures"].items()):
            if name.startswith("auc") and name in reference:
                cell["figures"][name.replace("auc", "gain", 1)] = {
                    seed: value - reference[name][seed]
                    for seed, value in values.items()
                    if seed in reference[name]
                }
    return cells


if __name__ == "__main__":
    as_command(main)
