"""Whether the optimizer or the place is why MultiBalance does not help: MMoE on prepared folders.

    python benchmarks/multi_balance_places.py --name kuairand --data prepared/kuairand_slice \\
        --config configs/kuairand_slice.yaml --out DIR --processes 2

Every rule weights the tasks everywhere below the fork, in the tables alone, and feature by feature
in each table alone (``weighted_training.py``), with every pair of optimizers of tables and of dense
weights. Learning rates are those, ``--factors`` times a first guess, that are best on the valid
split with equal weights and the first seed, the tables' first; all rules then train with them.
``DIR/seedN`` of a data folder, where it exists, is the folder of that seed. Each training that has
ended is a line of ``DIR/trainings.jsonl``; the same command goes on where it stopped. Writes the
study of that name into ``multi_balance_places.json`` and prints its rows.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from in_memory import load
from multi_balance import differences
from pool import Job, as_command, at_best, lines_of, work_off
from provenance import provenance
from weighted_training import Learner, Place, Rates, learning_curve

from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.balancing.rules.equal import EqualRule
from stem_torchrec.balancing.rules.mgda import MgdaRule
from stem_torchrec.balancing.rules.multi_balance import MultiBalanceOptions, MultiBalanceRule
from stem_torchrec.balancing.rules.static import StaticOptions, StaticRule
from stem_torchrec.config import Config
from stem_torchrec.config.reading import load_config

Record = dict[str, Any]
PAIRS = ("adagrad adam", "sgd adam", "sgd sgd", "adam adam", "adagrad sgd", "adam sgd")
"""Optimizers of tables and of dense weights, what tells most first."""
PLACES: tuple[Place, ...] = ("everywhere", "tables", "features")


class FullMgda(MgdaRule):
    """Times the number of tasks, so that SGD steps as far as with equal weights."""

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Any, State]:
        weights, state = super().multipliers(situation, state, step)
        return situation.active.sum() * weights, state


RULES: dict[str, Rule[Any]] = {
    "equal": EqualRule(),
    "multi_balance": MultiBalanceRule(),
    "raw Gram, floor": MultiBalanceRule(MultiBalanceOptions(matrix="gram", floor=0.5)),
    "mgda": FullMgda(),
}


def rule_of(name: str) -> Rule[Any]:
    """One of ``RULES``; or ``static:W:W``, those weights by task.

    Raises:
        ValueError: there is none of the name, or a weight is not allowed.
    """
    if name in RULES:
        return RULES[name]
    kind, *weights = name.split(":")
    if kind != "static":
        raise ValueError(f"{name!r}; there are {', '.join(RULES)} and static:W:W")
    return StaticRule(StaticOptions(tuple(float(weight) for weight in weights)))


def rule_name(name: str) -> str:
    try:
        rule_of(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


class Training(NamedTuple):
    """One of a study."""

    study: str
    folder: Path
    pair: str
    rates: Rates
    rule: str
    place: Place
    seed: int

    @property
    def key(self) -> str:
        rates = f"{self.rates.tables:.3g} {self.rates.dense:.3g}"
        of_data = f"{self.study}, {self.folder}, {self.pair} {rates}"
        return f"{of_data}, {self.rule} {self.place}, seed{self.seed}"


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    lines = options.out / "trainings.jsonl"
    do = partial(train, options)
    queue = {"processes": options.processes, "limit_s": options.limit_s, "fork": True}
    for side in Rates._fields:
        searched = [
            training
            for folder, pair in product(options.data, options.pairs)
            for training in candidates(options, folder, pair, side, lines_of(lines))
        ]
        work_off([Job(t.key, t) for t in searched], do, lines, **queue)
    done = lines_of(lines)
    wanted = [
        Training(options.name, folder, pair, rates, rule, place, seed)
        for folder, pair in product(options.data, options.pairs)
        if (rates := best_of(candidates(options, folder, pair, "dense", done), done))
        for seed in range(options.seeds)
        for rule, place in cells(options.rules)
    ]
    wanted.sort(key=lambda training: (training.seed, options.pairs.index(training.pair)))
    work_off([Job(t.key, t) for t in wanted], do, lines, **queue)
    rows = summary(wanted, lines_of(lines))
    result = {"settings": options.set, "factors": options.factors, "rows": rows}
    write(options, result | {"provenance": provenance()})
    for row in rows:
        print(json.dumps(row))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of the study")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument(
        "--rules",
        nargs="+",
        type=rule_name,
        default=list(RULES),
        help=f"of {', '.join(map(repr, RULES))} (all, if left out) and static:W:W, weights by task",
    )
    parser.add_argument("--factors", type=float, nargs="+", default=[0.25, 1.0, 4.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time; 0: in here")
    parser.add_argument("--limit-s", type=float, help="begin no training after so many seconds")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value")
    return parser.parse_args(arguments)


def config_of(options: argparse.Namespace, folder: Path, seed: int) -> Config:
    of_seed = folder / f"seed{seed}"
    own = {"data.path": of_seed if of_seed.is_dir() else folder, "run.dir": "none"}
    own |= {"run.seed": seed, "model.name": "mmoe"}
    given = [*(f"{key}={value}" for key, value in own.items()), *options.set]
    return load_config(options.config, [f"--{setting}" for setting in given])


def candidates(
    options: argparse.Namespace, folder: Path, pair: str, side: str, lines: Mapping[str, Record]
) -> list[Training]:
    """Equal weights and the first seed at rates of the tables, beside a first guess of the dense
    weights'; or at rates of these beside the tables' best, none before it is known."""
    base: Rates | None = base_rates(config_of(options, folder, seed=0), pair)
    if side == "dense":
        base = best_of(candidates(options, folder, pair, "tables", lines), lines)
    return [
        Training(options.name, folder, pair, rates, "equal", "everywhere", 0)
        for factor in options.factors
        if base
        for rates in [base._replace(**{side: getattr(base, side) * factor})]
    ]


def best_of(searched: Sequence[Training], lines: Mapping[str, Record]) -> Rates | None:
    """Those best on the valid split; None before all have ended."""
    if not searched or not all("best" in lines.get(t.key, {}) for t in searched):
        return None
    best = max(searched, key=lambda t: lines[t.key]["best"]["valid"]["auc_mean"])
    return best.rates


def base_rates(config: Config, pair: str) -> Rates:
    """The config's are those of Adagrad for tables and of Adam for dense weights."""
    of_tables, of_dense = pair.split()
    tables = config.embedding.lr * {"adagrad": 1.0, "adam": 0.1, "sgd": 100.0}[of_tables]
    return Rates(tables, config.optim.lr * {"adam": 1.0, "sgd": 100.0}[of_dense])


def cells(rules: Sequence[str]) -> list[tuple[str, Place]]:
    """Rules with their places; equal weights are the same in all, and what others are held to."""
    others = [(rule, place) for rule in rules for place in PLACES if rule != "equal"]
    return [("equal", "everywhere"), *others]


def train(options: argparse.Namespace, training: Training) -> Record:
    """The figures of one training at its best epoch, by split."""
    config = config_of(options, training.folder, training.seed)
    data = load(config)
    of_tables, of_dense = training.pair.split()
    learner = Learner(
        config, data, (of_tables, of_dense), training.rates, rule_of(training.rule), training.place
    )
    return {"best": at_best(list(learning_curve(config, data, learner)))}


def summary(wanted: Sequence[Training], lines: Mapping[str, Record]) -> list[Record]:
    """A row per folder, pair, rule and place, of the seeds that have ended."""
    rows: list[Record] = []
    ended: dict[tuple[Path, str, str, Place], dict[int, Record]] = {}
    rates = {(t.folder, t.pair): t.rates for t in wanted}
    for t in wanted:
        if "best" in (line := lines.get(t.key, {})):
            ended.setdefault((t.folder, t.pair, t.rule, t.place), {})[t.seed] = line["best"]
    for (folder, pair, rule, place), by_seed in ended.items():
        row: Record = {"data": folder.name, "optimizers": pair, "rule": rule, "place": place}
        row |= {"rates": rates[folder, pair]._asdict(), "seeds": sorted(by_seed)}
        equal = ended.get((folder, pair, "equal", "everywhere"), {})
        rows.append(row | differences(by_seed, equal))
    return rows


def write(options: argparse.Namespace, result: Record) -> None:
    """Beside the studies of other names."""
    file = options.out / "multi_balance_places.json"
    studies = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(studies | {options.name: result}, indent=1) + "\n")


if __name__ == "__main__":
    as_command(main)
