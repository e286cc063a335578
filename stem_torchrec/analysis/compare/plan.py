"""Which runs a comparison consists of, all checked before the first one starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from stem_torchrec.analysis.training_process import Training
from stem_torchrec.config import Config, ModelConfig, model_class
from stem_torchrec.config.keys import Key
from stem_torchrec.config.reading import keys_in_use, load_config, parse_options
from stem_torchrec.distributed.balance import rule_for
from stem_torchrec.errors import UserError, did_you_mean
from stem_torchrec.runs.schema import selected_schema
from stem_torchrec.training.checks import check_inputs
from stem_torchrec.training.replay import replay_of
from stem_torchrec.training.session import has_split

SINGLE_TASK = "single_task"
"""The model that a multi-task gain is measured against."""

_SET_OTHERWISE = {
    "run.dir": "--out",
    "model.name": "--models",
    "balance.rule": "--balance",
}
_SAME_FOR_ALL = ("run.seed", "data.path", "tasks.names", *_SET_OTHERWISE)


@dataclass(frozen=True)
class Request:
    """What ``compare`` was asked for.

    Attributes:
        rules: names of balancing rules; the config's own if None.
        seeds: how many, from the config's ``run.seed`` on.
        vary: ``section.key=v1;v2`` each.
        own: ``MODEL:section.key=value`` each, for one model's runs.
        overrides: ``--section.key value`` for every run.
        days: go through these, FIRST:LAST, instead of training and testing; None for the latter.
    """

    config: Path
    models: Sequence[str]
    rules: Sequence[str] | None
    seeds: int
    out: Path
    vary: Sequence[str] = ()
    own: Sequence[str] = ()
    nproc: int | None = None
    parallel: int = 1
    overwrite: bool = False
    overrides: Sequence[str] = ()
    days: str | None = None


class Combination(NamedTuple):
    """What the report has a row for."""

    model: str
    rule: str
    varied: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        return " ".join([self.model, self.rule, *(f"{key}={text}" for key, text in self.varied)])


@dataclass(frozen=True)
class PlannedRun(Training):
    """One ``train`` command, or ``replay`` where there are days."""

    combination: Combination
    config: Config
    overrides: Sequence[str]
    days: str | None = None

    @property
    def seed(self) -> int:
        return self.config.run.seed

    @property
    def label(self) -> str:
        return f"{self.combination.label} seed {self.seed}"


class Plan(NamedTuple):
    """The runs in their order: every combination with the first seed, then with the next.

    Attributes:
        left_out: combinations that cannot be trained, and why.
    """

    combinations: Sequence[Combination]
    runs: Sequence[PlannedRun]
    left_out: Sequence[tuple[Combination, str]]


def make_plan(request: Request) -> Plan:
    """Check every combination against config and data; writes nothing.

    Raises:
        UserError: an option, key, value, model, rule or the data is not fit. A rule that does not
            fit a model is left out instead, if the model is there with ``equal``.
    """
    _at_least_one("--seeds", request.seeds)
    _at_least_one("--parallel", request.parallel)
    if request.nproc is not None:
        _at_least_one("--nproc", request.nproc)
    _each_once("--models", request.models)
    for model in request.models:
        try:
            model_class(model)
        except ValueError as error:
            hint = did_you_mean(model, ModelConfig.kind_names())
            raise UserError(f"--models: {error}{hint}") from None
    keys = _known_keys(request)
    fixed = [name for name, _ in parse_options(request.overrides, keys)]
    for name in fixed:
        if name in _SET_OTHERWISE:
            raise UserError(f"{name}: set by {_SET_OTHERWISE[name]} here")
    varied = _varied_settings(request.vary, fixed, keys)
    _own_settings(request, keys, taken=[name for name, _ in varied[0]])
    chosen = [f"--run.dir={request.out}", f"--model.name={request.models[0]}"]
    base = load_config(request.config, [*request.overrides, *chosen])
    if request.days is not None:
        _check_days(base, request.days)
    elif not has_split(base.data.path, "test"):
        raise UserError(f"data.path: {str(base.data.path)!r} has no test split to compare on")
    rules = [base.balance.rule] if request.rules is None else request.rules
    _each_once("--balance", rules)

    kept, left_out = [], []
    for combination in (Combination(*c) for c in product(request.models, rules, varied)):
        reason = _unfit(request, combination, base.run.seed)
        if reason is None:
            kept.append(combination)
        elif "equal" in rules:
            left_out.append((combination, reason))
        else:
            raise UserError(f"{combination.label}: {reason}")
    seeds = range(base.run.seed, base.run.seed + request.seeds)
    runs = [_planned(request, combination, seed) for seed in seeds for combination in kept]
    return Plan(kept, runs, left_out)


def _planned(request: Request, combination: Combination, seed: int) -> PlannedRun:
    model, rule, varied = combination
    name = "-".join([model, rule, *map("=".join, varied), f"seed{seed}"])
    overrides = [
        *request.overrides,
        f"--run.dir={request.out / 'runs' / quote(name, safe='=,')}",
        f"--run.seed={seed}",
        f"--model.name={combination.model}",
        f"--balance.rule={combination.rule}",
        *_own_settings(request, _known_keys(request)).get(combination.model, []),
        *(f"--{key}={text}" for key, text in combination.varied),
    ]
    config = load_config(request.config, overrides)
    if request.days is not None:
        config = replay_of(config, request.days)[0]
    return PlannedRun(combination, config, overrides, request.days)


def _check_days(config: Config, days: str) -> None:
    """Raise UserError if there is no day to judge by: the first one is, by untrained weights."""
    if len(replay_of(config, days)[1].days) < 2:
        raise UserError(f"--replay: {days}; expected FIRST:LAST of at least two days")


def _unfit(request: Request, combination: Combination, seed: int) -> str | None:
    """Why the rule does not fit the model; None if it does.

    Raises:
        UserError: any other mistake, that of a rule by itself included.
    """
    config = _planned(request, combination, seed).config
    rule_for(config.balance, len(selected_schema(config).tasks), seed)
    try:
        check_inputs(config, splits=None if request.days is None else ["train"])
    except UserError as error:
        if combination.rule != "equal" and str(error).startswith("balance."):
            return str(error)
        raise
    return None


def _known_keys(request: Request) -> list[Key]:
    """Every key, those of imported models and rules included."""
    chosen = [f"--model.name={model}" for model in request.models]
    chosen += [f"--balance.rule={rule}" for rule in request.rules or ()]
    found: dict[str, Key] = {}
    for option in chosen:
        of_option = keys_in_use(request.config, [*request.overrides, option])
        found |= {key.name: key for key in of_option}
    return list(found.values())


def _varied_settings(
    options: Sequence[str], fixed: Sequence[str], keys: Sequence[Key]
) -> list[tuple[tuple[str, str], ...]]:
    """``["a.b=1;2", "c.d=3"]`` -> every choice of one value per key."""
    values: dict[str, list[str]] = {}
    for option in options:
        key, equals, text = option.partition("=")
        parts = [part.strip() for part in text.split(";")]
        if not (key and equals and all(parts)):
            raise UserError(f"--vary: {option!r}; expected section.key=value;value")
        ((name, _),) = parse_options([f"--{key}={parts[0]}"], keys)
        if name in _SAME_FOR_ALL:
            instead = _SET_OTHERWISE.get(name)
            hint = f"use {instead}" if instead else "compared runs have it in common"
            raise UserError(f"--vary: {name} cannot vary; {hint}")
        if name in values or name in fixed:
            raise UserError(f"--vary: {name} is set twice")
        _each_once(f"--vary: {name}", parts)
        values[name] = parts
    return [tuple(zip(values, choice, strict=True)) for choice in product(*values.values())]


def _own_settings(
    request: Request, keys: Sequence[Key], taken: Sequence[str] = ()
) -> dict[str, list[str]]:
    """``["MODEL:a.b=1"]`` -> model -> ``--a.b=1`` each; ``taken`` keys are set otherwise."""
    found: dict[str, list[str]] = {}
    compared = ", ".join(request.models)
    for option in request.own:
        place, equals, text = option.partition("=")
        model, colon, key = place.rpartition(":")  # an import path has a colon of its own
        if not (model and colon and key and equals and text):
            raise UserError(f"--own: {option!r}; expected MODEL:section.key=value")
        if model not in request.models:
            raise UserError(f"--own: {model!r} is not compared; --models has {compared}")
        ((name, _),) = parse_options([f"--{key}={text}"], keys)
        if name in _SAME_FOR_ALL:
            raise UserError(f"--own: {name} cannot differ between models")
        if name in taken:
            raise UserError(f"--own: {name} is varied by --vary")
        found.setdefault(model, []).append(f"--{key}={text}")
    return found


def _at_least_one(option: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{option}: {value}; allowed: 1 or more")


def _each_once(option: str, values: Sequence[Any]) -> None:
    if not values:
        raise UserError(f"{option}: no name; expected a,b,c")
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{option}: {value!r} is given twice")
