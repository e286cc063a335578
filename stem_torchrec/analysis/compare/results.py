"""From the records of finished runs to figures per combination, over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, NamedTuple

import torch

from stem_torchrec.analysis.compare.plan import SINGLE_TASK, Combination
from stem_torchrec.analysis.replay import day_records, mean_figures
from stem_torchrec.analysis.spread import Spread
from stem_torchrec.config import Config
from stem_torchrec.distributed.recommender import Recommender
from stem_torchrec.runs.records import Record, last_test
from stem_torchrec.runs.schema import selected_schema

Figures = dict[str, float]
"""Figures of a run by name, such as ``auc_mean`` or ``ne/click``; undefined ones are left out."""

PER_TASK = ("logloss", "ne", "auc")


class Parameters(NamedTuple):
    tables: int
    dense: int

    @property
    def total(self) -> int:
        return self.tables + self.dense


@dataclass(frozen=True)
class Row:
    """A combination over its finished seeds.

    Attributes:
        seeds: the finished ones.
        figures: those of ``Figures``, and the paired ones: ``gain/TASK`` and ``gain_mean`` (AUC
            above ``single_task`` with the same seed), ``difference`` (mean AUC above the
            reference's with the same seed).
        reference: what ``difference`` is taken from and parameters are relative to.
    """

    combination: Combination
    seeds: Sequence[int]
    figures: Mapping[str, Spread]
    parameters: Parameters
    reference: Combination | None


def figures_of(records: Sequence[Record]) -> Figures:
    """The figures of a finished run, of the test split or means over the days of a replay.

    Speed and memory are those of its last train record.
    """
    days = day_records(records)
    found: dict[str, Any] = {**mean_figures(days)} if days else _of_test_split(records)
    for name, key in (("qps", "qps_total"), ("peak_memory_bytes", "peak_memory_bytes")):
        known = [r[key] for r in records if r["kind"] == "train" and r.get(key) is not None]
        found[name] = known[-1] if known else None
    return {name: value for name, value in found.items() if type(value) in (int, float)}


def _of_test_split(records: Sequence[Record]) -> dict[str, Any]:
    test = last_test(records)
    assert test is not None, "only finished runs have figures"
    by_task = {name: test.get(name) for name in PER_TASK}
    found = {
        f"{name}/{task}": value
        for name, values in by_task.items()
        if isinstance(values, Mapping)
        for task, value in values.items()
    }
    return found | {"auc_mean": test.get("auc_mean")}


def count_parameters(config: Config) -> Parameters:
    """Numbers in the tables and in the rest of the model; nothing is allocated."""
    with torch.device("meta"):
        recommender = Recommender(config, selected_schema(config))
    tables, dense = (
        sum(parameter.numel() for parameter in part.parameters())
        for part in (recommender.embeddings, recommender.model)
    )
    return Parameters(tables, dense)


def reference_of(
    combination: Combination, combinations: Sequence[Combination]
) -> Combination | None:
    """``single_task`` with the same varied settings; without that model the first combination."""
    single = [c for c in combinations if c.model == SINGLE_TASK]
    if not single:
        return combinations[0]
    return next((c for c in single if c.varied == combination.varied), None)


def summarize(
    results: Mapping[Combination, Mapping[int, Figures]],
    parameters: Mapping[Combination, Parameters],
) -> list[Row]:
    """One row per combination, in the given order.

    Args:
        results: figures by combination and seed; a combination of failed runs has no seeds.
    """
    rows = []
    for combination, by_seed in results.items():
        reference = reference_of(combination, list(results))
        paired = {}
        if reference is not None and reference != combination:
            others = results[reference]
            common = [seed for seed in by_seed if seed in others]
            paired = {s: paired_figures(by_seed[s], others[s], reference.model) for s in common}
        figures = _over_seeds(list(by_seed.values())) | _over_seeds(list(paired.values()))
        rows.append(Row(combination, list(by_seed), figures, parameters[combination], reference))
    return rows


def paired_figures(own: Figures, other: Figures, other_model: str) -> Figures:
    """What one run has above the reference's with the same seed."""
    found = {}
    if "auc_mean" in own and "auc_mean" in other:
        found["difference"] = own["auc_mean"] - other["auc_mean"]
    if other_model == SINGLE_TASK:
        tasks = [name.removeprefix("auc/") for name in own if name.startswith("auc/")]
        gains = {t: own[f"auc/{t}"] - other[f"auc/{t}"] for t in tasks if f"auc/{t}" in other}
        found |= {f"gain/{task}": gain for task, gain in gains.items()}
        if gains:
            found["gain_mean"] = mean(gains.values())
    return found


def _over_seeds(runs: Sequence[Figures]) -> dict[str, Spread]:
    """Each figure over the runs that have it."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: Spread(tuple(run[name] for run in runs if name in run)) for name in names}


def best(values: Sequence[float | None], *, higher: bool) -> set[int]:
    """Places of the best value: one, unless others equal it exactly; none where none competes."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return set()
    winner = max(known) if higher else min(known)
    return {place for place, value in enumerate(values) if value == winner}
