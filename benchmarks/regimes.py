"""Where which model and which balancing rule helps: generated worlds x models x rules, over seeds.

    python benchmarks/regimes.py --out DIR --seeds 3

Prepares each world of ``prepare synthetic`` once into ``DIR/data/WORLD`` and runs ``compare`` for
every cell into ``DIR/WORLD/MODEL-RULE``, one seed after another on one rank each. Interrupted, the
same command goes on where it stopped. Writes ``regimes.json`` (every figure of the test split with
its seeds, what was left out or failed, and the best that is possible) and ``regimes.png`` (gain in
mean AUC over single-task networks with the same seed). ``--redraw`` makes the map of
``DIR/regimes.json`` again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from provenance import provenance
from regimes_map import heat_map

from stem_torchrec.analysis.compare.comparison import compare
from stem_torchrec.analysis.compare.plan import SINGLE_TASK, Request, make_plan
from stem_torchrec.analysis.compare.results import Row
from stem_torchrec.config.reading import load_options
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.synthetic.config import WorldName
from stem_torchrec.prepare.synthetic.prepare import (
    BEST_FILE,
    TRUTH_FOLDER,
    SyntheticConfig,
    prepare_synthetic,
)

Record = dict[str, Any]

WORLDS: tuple[str, ...] = get_args(WorldName)
CONFIG = Path(__file__).parents[1] / "configs" / "contradiction.yaml"
# Tables too small to hold what all tasks want at once, and features that tell little.
DATA = {
    "train_rows": "1000000",
    "valid_rows": "50000",
    "test_rows": "200000",
    "num_users": "20000",
    "num_items": "3000",
    "latent_dim": "4",
    "num_clusters": "200",
    "individuality": "0.5",
    "num_user_features": "1",
    "num_item_features": "1",
}
_RATIOS = {"positive_ratios": "[0.3, 0.15]"}
DATA_OF_WORLD: dict[str, dict[str, str]] = {
    **dict.fromkeys(WORLDS, _RATIOS),
    "contradicting": _RATIOS | {"conflict_share": "0.5"},
    "rare": {},
    "scales": {},
}
# Every model has three experts.
MODELS: dict[str, tuple[str, ...]] = {
    "single_task": (),
    "mmoe": ("--model.num_shared_experts=3",),
    "me_mmoe": ("--model.num_shared_experts=3",),
    "ple": (),
    "stem_net": (),
    "stem_net_without_stop_gradient": ("--model.stop_gradient=false",),
}
RULES = ("equal", "multi_balance@pooled", "multi_balance@experts", "mgda@parameters")


class Cell(NamedTuple):
    """What the seeds are taken over."""

    world: str
    model: str
    rule: str

    def request(self, data: Path, options: argparse.Namespace) -> Request:
        rule, _, boundary = self.rule.partition("@")
        return Request(
            config=options.config,
            models=[self.model.partition("_without_")[0]],
            rules=[rule],
            seeds=options.seeds,
            out=options.out / self.world / f"{self.model}-{self.rule}",
            nproc=1,
            parallel=options.parallel,
            overrides=[
                f"--data.path={data}",
                *MODELS[self.model],
                *([f"--balance.boundary={boundary}"] if boundary else []),
                *(f"--{setting}" for setting in options.set),
            ],
        )


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    file = options.out / "regimes.json"
    if not options.redraw:
        result = study(options)
        file.write_text(json.dumps(result, indent=2) + "\n")
    heat_map(json.loads(file.read_text())["cells"], options.out / "regimes.png")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS, metavar="WORLD")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=1, help="runs of a cell at a time")
    parser.add_argument("--data", nargs="*", default=[], metavar="key=value", help="of each world")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value")
    parser.add_argument("--redraw", action="store_true", help="the map alone, of what is there")
    options = parser.parse_args(arguments)
    for pair in options.data:
        if "=" not in pair:
            parser.error(f"--data: {pair!r}; expected key=value")
    return options


def study(options: argparse.Namespace) -> Record:
    """Every cell of every world, and where the figures come from."""
    cells, worlds = [], {}
    for world in options.worlds:
        data = prepared(world, options)
        worlds[world] = {
            "options": json.loads(options_file(data).read_text()),
            "best": json.loads((data / TRUTH_FOLDER / BEST_FILE).read_text()),
        }
        found = [
            run(Cell(world, model, rule), data, options)
            for model in options.models
            for rule in options.rules
        ]
        cells += with_gains(found)
    return {"worlds": worlds, "cells": cells, "provenance": provenance()}


def prepared(world: str, options: argparse.Namespace) -> Path:
    """The folder of a world, made if it is not there.

    Raises:
        UserError: it is there with other options.
    """
    folder = options.out / "data" / world
    wanted = DATA | DATA_OF_WORLD[world] | dict(pair.split("=", 1) for pair in options.data)
    described = options_file(folder)
    if (folder / "schema.json").is_file():
        if json.loads(described.read_text()) != wanted:
            raise UserError(f"{folder} was made with other options; choose another --out")
        return folder
    arguments = [f"--{key}={text}" for key, text in wanted.items()]
    config = load_options(SyntheticConfig, [f"--world={world}", *arguments])
    described.parent.mkdir(parents=True, exist_ok=True)
    described.write_text(json.dumps(wanted, indent=2) + "\n")
    prepare_synthetic(config, folder)
    return folder


def options_file(folder: Path) -> Path:
    return folder.with_suffix(".json")


def run(cell: Cell, data: Path, options: argparse.Namespace) -> Record:
    """One ``compare``; a rule that does not fit the model is left out with the reason."""
    record: Record = {**cell._asdict(), "left_out": None, "failures": [], "figures": {}}
    request = cell.request(data, options)
    if cell.rule != "equal":
        with_equal = make_plan(request_with_equal(request))
        if with_equal.left_out:
            return record | {"left_out": with_equal.left_out[0][1]}
    found = compare(request, " ".join(cell), lambda line: print(cell.world, line, flush=True))
    failures = [f"{outcome.run.label}: {outcome.failure}" for outcome in found.failures]
    return record | {"failures": failures, "figures": figures(found.rows)}


def request_with_equal(request: Request) -> Request:
    """A plan leaves out what does not fit only where ``equal`` is compared too."""
    assert request.rules is not None
    return replace(request, rules=["equal", *request.rules])


def figures(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Figure -> seed -> value, for the seeds that did not fail."""
    return {
        name: dict(zip(map(str, row.seeds), spread.values, strict=True))
        for row in rows
        for name, spread in row.figures.items()
        if len(spread.values) == len(row.seeds)
    }


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
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
