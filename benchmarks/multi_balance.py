"""Why MultiBalance helps or does not: one thing changed at a time, on prepared folders.

    python benchmarks/multi_balance.py --data prepared/kuairand_slice \\
        --config configs/kuairand_slice.yaml --out DIR --seeds 3 --processes 2

Each rule trains ``--model`` with the config's optimizers, for one epoch of large batches
(``undertrained``), and with SGD, which follows the gradient's scale where Adagrad and Adam take it
out. A training is judged at the epoch that is best on the valid split, a rule with SGD at the
learning rates that are. Each training that has ended is a line of ``DIR/trainings.jsonl``; the same
command goes on where it stopped. Writes ``multi_balance.json`` and prints it as a table.
"""

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from pool import Job, as_command, at_best, learning_curve, lines_of, work_off
from provenance import provenance

from stem_torchrec.config.reading import load_config

Record = dict[str, Any]
Settings = dict[str, str]

_EXPERTS = {"balance.rule": "multi_balance", "balance.boundary": "experts"}
RULES: dict[str, Settings] = {
    "equal": {"balance.rule": "equal"},
    "experts": _EXPERTS,
    "pooled": _EXPERTS | {"balance.boundary": "pooled"},
    "experts, without smoothing": _EXPERTS | {"balance.gamma": "1"},
    "experts, no pull": _EXPERTS | {"balance.rho": "0"},
    "experts, slow weights": _EXPERTS | {"balance.beta": "0.01"},
    "experts, raw Gram": _EXPERTS | {"balance.matrix": "gram"},
    "experts, raw Gram, floor": _EXPERTS | {"balance.matrix": "gram", "balance.floor": "0.5"},
    "experts, floor": _EXPERTS | {"balance.floor": "0.5"},
}
LEARNERS: dict[str, tuple[Settings, ...]] = {
    "as configured": ({},),
    "undertrained": ({"train.epochs": "1", "train.batch_size": "1024"},),
    "sgd": tuple(
        {
            "embedding.optimizer": "sgd",
            "optim.optimizer": "sgd",
            "embedding.lr": str(100 * rate),
            "optim.lr": str(rate),
        }
        for rate in (0.1, 0.3, 1.0)
    ),
}


class Training(NamedTuple):
    """One of a rule: with a learner, one of its settings, on a folder, with a seed."""

    folder: Path
    learner: str
    rule: str
    point: int
    seed: int

    @property
    def key(self) -> str:
        return f"{self.folder.name}, {self.learner} {self.point}, {self.rule}, seed{self.seed}"

    def overrides(self, more: list[str]) -> list[str]:
        own = LEARNERS[self.learner][self.point] | RULES[self.rule]
        pairs = {"data.path": str(self.folder), "run.dir": "none", "run.seed": str(self.seed)}
        return [*more, *(f"--{key}={text}" for key, text in (pairs | own).items())]


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    wanted = [
        Training(folder, learner, rule, point, seed)
        for learner in options.learners
        for seed in range(options.seeds)
        for folder in options.data
        for rule in RULES
        for point in range(len(LEARNERS[learner]))
    ]
    more = [f"--{setting}" for setting in [f"model.name={options.model}", *options.set]]
    for training in {t.rule: t for t in wanted}.values():
        load_config(options.config, training.overrides(more))
    work_off(
        [Job(training.key, training) for training in wanted],
        partial(train, options.config, more),
        options.out / "trainings.jsonl",
        processes=options.processes,
        limit_s=options.limit_s,
        fork=True,
    )
    rows = summary(wanted, lines_of(options.out / "trainings.jsonl"))
    result = {"model": options.model, "settings": options.set, "rows": rows}
    content = json.dumps(result | {"provenance": provenance()}, indent=1)
    (options.out / "multi_balance.json").write_text(content + "\n")
    for row in rows:
        print(json.dumps(row))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="mmoe")
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=list(LEARNERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time; 0: in here")
    parser.add_argument("--limit-s", type=float, help="begin no training after so many seconds")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value")
    return parser.parse_args(arguments)


def train(config: Path, more: list[str], training: Training) -> Record:
    """The figures of one training at its best epoch, by split."""
    return {"best": at_best(learning_curve(load_config(config, training.overrides(more))))}


def summary(wanted: list[Training], lines: Mapping[str, Record]) -> list[Record]:
    """A row per folder, learner and rule, of the seeds that all of its points have ended for."""
    rows: list[Record] = []
    equal: dict[int, Record] = {}
    for folder, learner, rule in dict.fromkeys((t.folder, t.learner, t.rule) for t in wanted):
        own = [t for t in wanted if (t.folder, t.learner, t.rule) == (folder, learner, rule)]
        point, by_seed = best_point(own, lines)
        equal = by_seed if rule == "equal" else equal
        row: Record = {"data": folder.name, "learner": learner, "rule": rule, "point": point}
        rows.append(row | {"seeds": sorted(by_seed), **differences(by_seed, equal)})
    return rows


def best_point(own: list[Training], lines: Mapping[str, Record]) -> tuple[int, dict[int, Record]]:
    """The point with the highest mean on the valid split, and its figures by seed."""
    found: dict[int, dict[int, Record]] = {}
    for training in own:
        if "best" in (line := lines.get(training.key, {})):
            found.setdefault(training.point, {})[training.seed] = line["best"]
    if not found:
        return 0, {}
    seeds = set.intersection(*(set(by_seed) for by_seed in found.values()))
    means = {
        point: mean([by_seed[seed]["valid"]["auc_mean"] for seed in seeds])
        for point, by_seed in found.items()
        if seeds
    }
    best = max(means, key=means.__getitem__, default=0)
    return best, {seed: found[best][seed] for seed in seeds} if means else {}


def differences(by_seed: Mapping[int, Record], equal: Mapping[int, Record]) -> Record:
    """Mean AUC of the test split, and by how much it is above that of equal weights."""
    seeds = sorted(set(by_seed) & set(equal))
    if not seeds:
        return {}
    record: Record = {"auc_mean": mean([by_seed[s]["test"]["auc_mean"] for s in seeds])}
    above = [by_seed[s]["test"]["auc_mean"] - equal[s]["test"]["auc_mean"] for s in seeds]
    record |= {"gain": mean(above), "gain_std": stdev(above) if len(seeds) > 1 else 0.0}
    gains = {
        task: [by_seed[s]["test"]["auc"][task] - equal[s]["test"]["auc"][task] for s in seeds]
        for task in by_seed[seeds[0]]["test"]["auc"]
    }
    record["gain_by_task"] = {task: mean(of_seeds) for task, of_seeds in gains.items()}
    if len(seeds) > 1:
        record["gain_std_by_task"] = {task: stdev(of_seeds) for task, of_seeds in gains.items()}
    balance = [by_seed[s]["test"].get("balance", {}) for s in seeds]
    for name in ("weight", "cosine", "gradient_norm", "conflict_share", "lowest_cosine"):
        if all(name in figures for figures in balance):
            by_task = zip(*(figures[name] for figures in balance), strict=True)
            record[name] = [mean(values) for values in by_task]
    return record


if __name__ == "__main__":
    as_command(main)
