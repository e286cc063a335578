"""Which tensor of another run's checkpoint a tensor of this model starts from."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Literal, NamedTuple

from stem_torchrec.checkpoint.choice import Choice
from stem_torchrec.errors import UserError
from stem_torchrec.nn.owners import SHARED, Ownership
from stem_torchrec.storage.place import Place

TABLES = ".embedding_bags."
_NOT_WEIGHTS = ".fork."
_NOT_THERE = "not in the other run"
_OTHER_OWNER = "of tasks or experts that the other run does not have"

Shape = tuple[int, ...]
Pairs = Sequence[tuple[int, int]]


class Initial(NamedTuple):
    """Where a run's first weights come from.

    Attributes:
        run_dir: of the other run.
        names: (there, here) pairs of tasks, features, owners or other parts of a tensor's name.
        new_tasks: what the tables of a task that the other run does not have start from.
        checkpoint: which of the other run's; of ``last`` the newest that is valid.
        continues: optimizers, balancing and schedules go on, too, on data that extends the run's.
    """

    run_dir: Place
    names: tuple[tuple[str, str], ...] = ()
    new_tasks: Literal["shared", "fresh"] = "shared"
    checkpoint: Choice = "last"
    continues: bool = False

    @property
    def option(self) -> str:
        """Of the command line."""
        return "--continue-from" if self.continues else "--init-from"


class Source(NamedTuple):
    """What the other run's checkpoint holds.

    Attributes:
        shapes: by tensor's name there.
        tasks: in their order there.
        owners: whose each dense weight is, by its name.
        features: those of tables, then dense ones, in their order there; None if not known.
    """

    shapes: Mapping[str, Shape]
    tasks: Sequence[str]
    owners: Mapping[str, Ownership]
    features: Sequence[str] | None = None


class Piece(NamedTuple):
    """What a dense weight takes from one tensor.

    Attributes:
        source: the tensor's name there.
        indices: per dimension (here, there) pairs to copy; None for all of it.
    """

    source: str
    indices: tuple[Pairs, ...] | None = None


class Here(NamedTuple):
    """The model that takes them.

    Attributes:
        shapes, tasks, features, owners: as of ``Source``.
        reading: names of the dense weights that read the features.
    """

    shapes: Mapping[str, Shape]
    tasks: Sequence[str]
    features: Sequence[str]
    owners: Mapping[str, Ownership]
    reading: Set[str]


class Match(NamedTuple):
    """A tensor that is loaded.

    Attributes:
        pieces: what it takes from where. A table takes one.
        rows: rows that are copied, of a table; None for a dense weight.
        in_part: the rest of a dense weight keeps its initial values.
    """

    pieces: tuple[Piece, ...]
    rows: int | None = None
    in_part: bool = False

    @property
    def source(self) -> str:
        """Names there."""
        return ", ".join(piece.source for piece in self.pieces)


def matches(here: Here, source: Source, initial: Initial) -> dict[str, Match | str]:
    """For every tensor here what it starts from, or why it keeps its initial values.

    Tables are found by name, dense weights by what they do and whose they are: a weight of several
    tasks takes each one's part from wherever that lies there.

    Raises:
        UserError: a table has fewer rows or another dimension here; a name of ``names`` is not
            there, or not here, or is taken.
    """
    rename = _renaming(here, source, initial)
    there = {rename(name): name for name in source.shapes}
    their_tasks = [_renamed_part(task, initial.names) for task in source.tasks]
    by_role = _weights_by_role(source, rename, initial.names)
    their_features = [_renamed_part(name, initial.names) for name in source.features or ()]
    same_features = source.features is None or their_features == list(here.features)
    found: dict[str, Match | str] = {}
    for name, shape in here.shapes.items():
        if _NOT_WEIGHTS in name:
            continue
        if TABLES not in name:
            found[name] = _dense(name, here, by_role, same_features)
            continue
        origin = there.get(name) or _origin_of_new_task(
            name, there, their_tasks, here.tasks, initial
        )
        found[name] = (
            Match(
                (Piece(origin),),
                _rows(initial.option, name, shape, origin, source.shapes[origin]),
            )
            if origin is not None
            else _NOT_THERE
        )
    return found


def _origin_of_new_task(
    name: str,
    there: Mapping[str, str],
    their_tasks: Sequence[str],
    tasks: Sequence[str],
    initial: Initial,
) -> str | None:
    prefix, table = name.rsplit(".", 2)[0], name.rsplit(".", 2)[1]
    owner, _, feature = table.partition("__")
    if initial.new_tasks == "fresh" or owner not in tasks or owner in their_tasks:
        return None
    return there.get(f"{prefix}.{SHARED}__{feature}.weight")


def _rows(option: str, name: str, here: Shape, origin: str, there: Shape) -> int:
    table = name.rsplit(".", 2)[1]
    if here[1] != there[1]:
        raise UserError(
            f"{option}: {table} has dimension {here[1]}, {origin} there has {there[1]}; "
            "set embedding.dim and embedding.dims so that they are the same"
        )
    if here[0] < there[0]:
        raise UserError(
            f"{option}: {table} has {here[0]} rows, {origin} there has {there[0]}; a vocabulary "
            "may grow but not shrink (ids would mean other values)"
        )
    return there[0]


class _Weight(NamedTuple):
    """A dense weight there; its owners have the names that they have here."""

    name: str
    shape: Shape
    of: Ownership


def _weights_by_role(
    source: Source, rename: Callable[[str], str], names: Sequence[tuple[str, str]]
) -> dict[str, list[_Weight]]:
    def renamed_label(label: str) -> str:
        owner, *rest = label.split(":")
        return ":".join([_renamed_part(owner, names), *rest])

    found: dict[str, list[_Weight]] = {}
    for name, shape in source.shapes.items():
        of = source.owners.get(name, Ownership(name))
        renamed = Ownership(
            rename(of.role),
            renamed_label(of.owner) if of.owner is not None else None,
            {dim: tuple(map(renamed_label, labels)) for dim, labels in of.dims.items()},
        )
        found.setdefault(renamed.role, []).append(_Weight(name, shape, renamed))
    return found


def _dense(
    name: str, here: Here, by_role: Mapping[str, Sequence[_Weight]], same_features: bool
) -> Match | str:
    """What a weight takes from those that do the same there."""
    shape, of = here.shapes[name], here.owners.get(name, Ownership(name))
    weights = by_role.get(of.role, ())
    if weights and name in here.reading and not same_features:
        return "reads other features there"
    pieces, num_taken, reason = [], 0, _NOT_THERE
    for weight in weights:
        indices = _indices(shape, of, weight)
        if isinstance(indices, str):
            reason = indices
            continue
        whole = shape == weight.shape and all(i == j for pairs in indices for i, j in pairs)
        taken = math.prod(map(len, indices))
        whole = whole and taken == math.prod(shape)
        pieces.append(Piece(weight.name, None if whole else indices))
        num_taken += taken
    if not pieces:
        return reason
    return Match(tuple(pieces), in_part=num_taken < math.prod(shape))


def _indices(here: Shape, of: Ownership, weight: _Weight) -> tuple[Pairs, ...] | str:
    """Per dimension (here, there) pairs, or why there are none."""
    different = f"shape {list(here)}, there {list(weight.shape)}"
    if len(here) != len(weight.shape):
        return different
    if of.owner != weight.of.owner or of.dims.keys() != weight.of.dims.keys():
        return _OTHER_OWNER
    indices: list[Pairs] = []
    for dim, (size, their_size) in enumerate(zip(here, weight.shape, strict=True)):
        if dim in of.dims:
            places = {label: j for j, label in enumerate(weight.of.dims[dim])}
            labels = enumerate(of.dims[dim])
            pairs = tuple((i, places[label]) for i, label in labels if label in places)
            if size > 0 and not pairs:
                return _OTHER_OWNER
        elif size == their_size:
            pairs = tuple((i, i) for i in range(size))
        else:
            return different
        indices.append(pairs)
    return tuple(indices)


def _renaming(here: Here, source: Source, initial: Initial) -> Callable[[str], str]:
    theirs = _all_parts(source.shapes, source.tasks, source.features or ())
    ours = _all_parts(here.shapes, here.tasks, here.features)
    olds, news = [old for old, _ in initial.names], [new for _, new in initial.names]
    for old, new in initial.names:
        if old not in theirs:
            raise UserError(
                f"--init-map: {old!r} is no part of a name in {initial.run_dir}; tasks there: "
                f"{', '.join(source.tasks)}"
            )
        if new not in ours:
            raise UserError(
                f"--init-map: {new!r} is no part of a name here; tasks: {', '.join(here.tasks)}; "
                f"features: {', '.join(here.features)}"
            )
        if olds.count(old) > 1 or news.count(new) > 1:
            twice = old if olds.count(old) > 1 else new
            raise UserError(f"--init-map: {twice!r} is mapped twice")
        if new in theirs and new not in olds:
            raise UserError(
                f"--init-map: {old}={new}, but {initial.run_dir} has a {new!r} of its own; map "
                "that to another name, too"
            )

    def renamed(name: str) -> str:
        return ".".join(
            "__".join(_renamed_part(piece, initial.names) for piece in part.split("__"))
            for part in name.split(".")
        )

    return renamed


def _all_parts(*names: Iterable[str]) -> set[str]:
    return {part for some in names for name in some for part in _parts(name)}


def _parts(name: str) -> list[str]:
    return [piece for part in name.split(".") for piece in part.split("__")]


def _renamed_part(part: str, names: Sequence[tuple[str, str]]) -> str:
    return dict(names).get(part, part)
