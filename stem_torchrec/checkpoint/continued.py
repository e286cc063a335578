"""Going on with another run's training: weights, optimizers, balancing, place in the schedules."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from stem_torchrec.checkpoint.initial import (
    Other,
    copy_piece,
    load_weights,
    open_other,
    weights_report,
)
from stem_torchrec.checkpoint.load import load, read
from stem_torchrec.checkpoint.matching import TABLES, Initial, Match, Piece
from stem_torchrec.config import Config
from stem_torchrec.config.reading import load_config
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.optimizers import Optimizers
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.shards import block
from stem_torchrec.errors import shown
from stem_torchrec.nn.owners import SHARED

_FORK = ".fork."
_OTHER_OPTIMIZER = "another optimizer there, or another layout of its state"
_OF_SHARED = "of a new task, whose table starts from the shared one"


class Before:
    """The steps of the runs that this one goes on with.

    Attributes:
        steps: those that were left out for bad numbers included.
        skipped: those alone.
    """

    steps = skipped = 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": 0, "skipped": 0, "steps_before": 0, "skipped_before": 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}: expected a number of steps, found {shown(value)}")
        self.steps = state["step"] + state.get("steps_before", 0)
        self.skipped = state["skipped"] + state.get("skipped_before", 0)


def load_continued(
    model: DistributedModelParallel,
    optimizers: Optimizers,
    config: Config,
    schema: Schema,
    initial: Initial,
    ranks: Ranks,
) -> tuple[dict[str, Any], Before]:
    """As ``load_initial``, with what the run's optimizers, balancing and schedules know.

    Collective. What an optimizer keeps of a row goes with the row; that of new rows is as before a
    first step. The tables of a new task start as ``load_initial`` has them, their optimizers anew.

    Returns:
        The report of ``load_initial`` with ``optimizers``, ``balance`` and ``steps_before``; the
        steps before.

    Raises:
        UserError: as ``load_initial``.
    """
    other = open_other(model, config, schema, initial, ranks)
    _make_state(optimizers)
    load_weights(model, other, ranks)
    kept = _load_optimizers(optimizers, other, ranks)
    balance = _load_balance(model, config, schema, initial, other, ranks)
    before = Before()
    load(other.folder, {"position": before}, ranks)
    report = weights_report(other) | {
        "optimizers": kept,
        "balance": balance,
        "steps_before": before.steps,
    }
    return report, before


@torch.no_grad()
def _make_state(optimizers: Optimizers) -> None:
    """What optimizers keep is there to be loaded into; weights stay, of which some may be new."""
    before = [weight.detach().clone() for weight in optimizers.dense]
    optimizers.make_state()
    for weight, value in zip(optimizers.dense, before, strict=True):
        weight.copy_(value)


class _Kept(NamedTuple):
    """Something that an optimizer keeps of a weight.

    Attributes:
        part: where a checkpoint has it: ``fused.state.`` or ``stepped.state.`` and a prefix.
        weight: the weight's name in the model.
    """

    part: str
    weight: str
    key: str
    value: Tensor

    def name_there(self, weight: str) -> str:
        """In the checkpoint, below ``optimizers``, of the weight that is called so there."""
        key = self.key
        if TABLES in weight:
            key = key.replace(_table(self.weight), _table(weight))
        return f"{self.part}{weight}.{key}"


class _Reading:
    """What is read of the optimizers of the other run, and what is not."""

    def __init__(self, other: Other) -> None:
        self._other = other
        self.tensors: dict[str, Tensor] = {}
        self.copies: list[tuple[Tensor, str, Piece]] = []
        self.anew: dict[str, str] = {}

    def add(self, kept: _Kept) -> None:
        match = self._other.found[kept.weight]
        if isinstance(match, str):
            why: str | None = match
        elif match.rows is not None:
            why = self._add_rows(kept, match.source, match.rows)
        else:
            why = self._add_dense(kept, match)
        if why is not None:
            self.anew[kept.weight] = why

    def _add_rows(self, kept: _Kept, weight: str, rows: int) -> str | None:
        """Of a table with so many rows there; why not, or None."""
        owner, of = (_table(name).partition("__")[0] for name in (kept.weight, weight))
        if of == SHARED != owner:
            return _OF_SHARED
        name, size = kept.name_there(weight), tuple(kept.value.size())
        there, rows_here = self._size(name), self._other.shapes[kept.weight][0]
        if there is not None and size[:1] == (rows_here,) and there == (rows, *size[1:]):
            self.tensors[name] = block(kept.value, (0, rows))
        elif there == size and (size == () or rows == rows_here):
            self.tensors[name] = kept.value
        else:
            return _OTHER_OPTIMIZER
        return None

    def _add_dense(self, kept: _Kept, match: Match) -> str | None:
        for piece in match.pieces:
            name = kept.name_there(piece.source)
            there, of_weight = self._size(name), self._size(piece.source, "model")
            if there is None or there not in ((), of_weight):
                return _OTHER_OPTIMIZER
            self.tensors[name] = torch.empty(there, dtype=kept.value.dtype)
            counts = there == ()  # steps, of all of the weight
            self.copies.append((kept.value, name, Piece(piece.source) if counts else piece))
        return None

    def _size(self, name: str, part: str = "optimizers") -> tuple[int, ...] | None:
        entry = self._other.index.tensors.get(f"{part}.{name}")
        return entry.size if entry is not None else None


@torch.no_grad()
def _load_optimizers(optimizers: Optimizers, other: Other, ranks: Ranks) -> dict[str, Any]:
    """What optimizers keep of every weight that goes on, and which start anew. Collective."""
    state = optimizers.state_dict()
    reading = _Reading(other)
    for kept in _everything(state):
        reading.add(kept)
    # A rank may have nothing of its own to read: the step keeps it in the collective.
    content = {"optimizers": reading.tensors, "position": {"step": 0}}
    read(other.folder, other.index, content, ranks)
    for target, name, piece in reading.copies:
        copy_piece(target, reading.tensors[name], piece)
    optimizers.load_state_dict(state)
    by_rank = ranks.objects_of_all(reading.anew)
    anew = {name: why for part in by_rank for name, why in part.items()}
    return {"initial": dict(sorted(anew.items()))}


def _everything(state: Mapping[str, Any]) -> Iterator[_Kept]:
    for part, content in state.items():
        for parameter, values in content["state"].items():
            start = parameter.index("recommender.")
            for key, value in values.items():
                if isinstance(value, Tensor):
                    place = f"{part}.state.{parameter[:start]}"
                    yield _Kept(place, parameter[start:], key, value)


def _table(weight: str) -> str:
    return weight.removesuffix(".weight").rsplit(".", 1)[-1]


def _other_balance(
    config: Config, schema: Schema, other: Other, initial: Initial, forks: Mapping[str, Tensor]
) -> str | None:
    """Why the balancing starts anew; None if it goes on."""
    names = dict(initial.names)
    if [names.get(task, task) for task in other.source.tasks] != list(schema.task_names):
        return "other tasks"
    there = load_config(initial.run_dir / "config.yaml", ["--run.dir", str(initial.run_dir)])
    for key in ("rule", "boundary"):
        before, now = getattr(there.balance, key), getattr(config.balance, key)
        if before != now:
            return f"balance.{key} was {before}"
    shapes = other.source.shapes
    if any(shapes.get(name) != tuple(value.shape) for name, value in forks.items()):
        return "it keeps other figures there"
    return None


def _load_balance(
    model: DistributedModelParallel,
    config: Config,
    schema: Schema,
    initial: Initial,
    other: Other,
    ranks: Ranks,
) -> str:
    """Multipliers and what the rule remembers, if the tasks are the same. Collective.

    Returns:
        ``loaded``, or why not.
    """
    state = model.state_dict()
    forks = {name: value for name, value in state.items() if _FORK in name}
    if not forks:
        return "the rule keeps nothing"
    why = ranks.on_first(lambda: _other_balance(config, schema, other, initial, forks))
    if why is not None:
        return why
    read(other.folder, other.index, {"model": forks}, ranks)
    model.load_state_dict(state)
    return "loaded"
