"""The space of a search: config keys, each with a range or a list of choices.

optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
embedding.dim: {low: 8, high: 32, step: 8}
model.gate_input: [both, task]
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from yaml import YAMLError

from stem_torchrec.config import Config
from stem_torchrec.config.careful_yaml import careful_load
from stem_torchrec.config.hints import unknown_key
from stem_torchrec.config.keys import Key, by_key
from stem_torchrec.config.reading import keys_in_use, load_config, parse_options, read_yaml
from stem_torchrec.errors import UserError, did_you_mean, shown

if TYPE_CHECKING:
    from optuna import Trial

Value = int | float | str
"""What a search chooses: a number, or a choice as a command line has it."""

_PARTS = ("low", "high", "log", "step")
_JUDGING = ("run", "eval", "checkpoint")
"""Sections that say where trials are and how they are judged, which all have in common."""
_SAME_FOR_ALL = ("data.path", "tasks.names")
_FORM = "{low, high, log, step} or a list of choices"


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        log: as many trials in each power of ten.
        step: between neighbours; None for any number.
        whole: integers alone.
    """

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool

    def suggest(self, trial: "Trial", key: str) -> Value:
        if self.whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(key, low, high, step=step, log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    def place_of(self, value: Any) -> Value | None:
        """The value as the search has it; None for one that is outside."""
        if not _is_number(value) or not self.low <= value <= self.high:
            return None
        steps = (value - self.low) / self.step if self.step else 0
        return value if abs(steps - round(steps)) < 1e-9 else None

    def ends(self) -> list[str]:
        """Values by which to tell whether the key takes all."""
        step = self.step or 1
        between = [self.low + step] if self.whole and self.low + step < self.high else []
        return [text_of(value) for value in (self.low, self.high, *between)]

    def record(self) -> Any:
        return dict(zip(self._fields, self, strict=True))


class Choices(NamedTuple):
    """Values as texts of a command line: lists and nulls are values too."""

    texts: tuple[str, ...]

    def suggest(self, trial: "Trial", key: str) -> Value:
        return trial.suggest_categorical(key, self.texts)

    def place_of(self, value: Any) -> Value | None:
        return next((text for text in self.texts if _stands_for(text, value)), None)

    def ends(self) -> list[str]:
        return list(self.texts)

    def record(self) -> Any:
        return list(self.texts)


Space = Mapping[str, Range | Choices]


def load_space(path: Path, config: Path, overrides: Sequence[str]) -> Space:
    """A space file, each key checked against the config that its values go into.

    Raises:
        UserError: an unknown key or one that all trials have in common; a range or list that is
            none; a value that the key does not take.
    """
    content = read_yaml(path, "--space", "optim.lr")
    if not content:
        raise UserError(f"{path}: no key; expected such as 'optim.lr: {{low: 0.001, high: 0.1}}'")
    keys = {key.name: key for key in keys_in_use(config, overrides)}
    fixed = [name for name, _ in parse_options(overrides, keys.values())]
    for name in content:
        _check_key(path, name, keys, fixed)
    space = {name: _part(f"{path}: {name}", content[name], keys[name]) for name in content}
    for name, part in space.items():
        for text in part.ends():
            _check_value(path, name, text, config, overrides)
    return space


def own_values(space: Space, config: Config) -> dict[str, Value] | None:
    """The config's own values of the space's keys; None if one of them is outside."""
    own = by_key(config)
    found = {name: part.place_of(own[name]) for name, part in space.items()}
    return {n: v for n, v in found.items() if v is not None} if _all_there(found) else None


def settings(values: Mapping[str, Value]) -> list[str]:
    """Values of a trial as ``--section.key=value`` each."""
    return [f"--{name}={value}" for name, value in values.items()]


def text_of(value: Any) -> str:
    """A value as the command line takes it: a word as it is, all else as JSON."""
    return value if isinstance(value, str) and _is_word(value) else json.dumps(value)


def _is_word(text: str) -> bool:
    try:
        return text != "" and careful_load(text) == text
    except YAMLError:
        return False


def _stands_for(text: str, value: Any) -> bool:
    """Whether ``text_of`` of an equal value has given the text; 1 and 1.0 are equal."""
    return text == value if _is_word(text) else json.loads(text) == value


def _all_there(values: Mapping[str, Value | None]) -> bool:
    return all(value is not None for value in values.values())


def _check_key(path: Path, name: str, keys: Mapping[str, Key], fixed: Iterable[str]) -> None:
    if name not in keys:
        siblings = [key for key in keys if key.split(".")[0] == name.split(".")[0]]
        raise UserError(f"{path}: {unknown_key(name, siblings, list(keys))}")
    if name.split(".")[0] in _JUDGING or name in _SAME_FOR_ALL:
        raise UserError(f"{path}: {name} cannot be searched; trials have it in common")
    if name in fixed:
        raise UserError(f"{path}: {name} is set by --{name} too; leave one of both out")


def _part(where: str, content: Any, key: Key) -> Range | Choices:
    if isinstance(content, list):
        return _choices(where, content)
    if isinstance(content, dict):
        return _range(where, content, key)
    raise UserError(f"{where}: {shown(content)}; expected {_FORM}")


def _choices(where: str, values: list[Any]) -> Choices:
    texts = tuple(text_of(value) for value in values)
    if not texts:
        raise UserError(f"{where}: an empty list; expected {_FORM}")
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise UserError(f"{where}: {twice[0]} is there twice")
    return Choices(texts)


def _range(where: str, parts: Mapping[str, Any], key: Key) -> Range:
    kinds = set(key.allowed.split(" | ")) - {"null"}
    if not kinds <= {"integer", "number"}:
        raise UserError(f"{where}: {key.allowed} has no range; expected a list of choices")
    whole = "number" not in kinds
    for part in parts:
        if part not in _PARTS:
            hint = did_you_mean(part, _PARTS)
            raise UserError(f"{where}.{part}: unknown (allowed: {', '.join(_PARTS)}){hint}")
    low, high, step = (_number(where, parts, part, whole=whole) for part in ("low", "high", "step"))
    log = parts.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{where}.log: {shown(log)}; allowed: true, false")
    for part, value in (("low", low), ("high", high)):
        if value is None:
            raise UserError(f"{where}.{part}: required")
    assert low is not None
    assert high is not None
    found = Range(low, high, log, step, whole)
    _check_range(where, found)
    return found


def _check_range(where: str, found: Range) -> None:
    if found.low >= found.high:
        raise UserError(f"{where}: low {found.low}, high {found.high}; low has to be below high")
    if found.log and found.low <= 0:
        raise UserError(f"{where}: low {found.low} with log; allowed: above 0")
    if found.step is None:
        return
    if found.log:
        raise UserError(f"{where}: step {found.step} with log; leave one of both out")
    if found.step <= 0:
        raise UserError(f"{where}: step {found.step}; allowed: above 0")
    steps = (found.high - found.low) / found.step
    if abs(steps - round(steps)) > 1e-6:
        raise UserError(
            f"{where}: steps of {found.step} do not lead from {found.low} to {found.high}"
        )


def _number(where: str, parts: Mapping[str, Any], part: str, *, whole: bool) -> float | None:
    value = parts.get(part)
    if value is None:
        return None
    if not _is_number(value) or (whole and value != int(value)):
        kind = "an integer" if whole else "a number"
        raise UserError(f"{where}.{part}: {shown(value)}; expected {kind}")
    return int(value) if whole else float(value)


def _is_number(value: Any) -> bool:
    finite = isinstance(value, int | float) and abs(value) < float("inf")
    return finite and not isinstance(value, bool)


def _check_value(path: Path, name: str, text: str, config: Path, overrides: Sequence[str]) -> None:
    """Whether the key takes the value by itself; with others it is a trial that tells."""
    try:
        load_config(config, [*overrides, f"--{name}={text}"])
    except UserError as error:
        if str(error).startswith(name):
            raise UserError(f"{path}: {error}") from None
