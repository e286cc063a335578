"""Which tensor of another run's checkpoint a tensor of this model starts from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from stem_torchrec.embeddings import SHARED
from stem_torchrec.errors import UserError
from stem_torchrec.models.growth import Growth
from stem_torchrec.place import Place

TABLES = ".embedding_bags."
_NOT_WEIGHTS = ".fork."
_MODEL = "recommender.model."

Shape = tuple[int, ...]
Pairs = Sequence[tuple[int, int]]


class Initial(NamedTuple):
    """Where a run's first weights come from.

    Attributes:
        run_dir: of the other run.
        names: (there, here) pairs of tasks, features, owners or other parts of a tensor's name.
        new_tasks: what the tables of a task that the other run does not have start from.
    """

    run_dir: Place
    names: tuple[tuple[str, str], ...] = ()
    new_tasks: Literal["shared", "fresh"] = "shared"


class Source(NamedTuple):
    """What the other run's checkpoint holds.

    Attributes:
        shapes: by tensor's name there.
        tasks: in their order there.
        features: those of tables, then dense ones, in their order there; None if not known.
        chain: its tasks as they follow one another, of a model that has such an order.
    """

    shapes: Mapping[str, Shape]
    tasks: Sequence[str]
    features: Sequence[str] | None = None
    chain: Sequence[str] | None = None


class Here(NamedTuple):
    """The model that takes them.

    Attributes:
        shapes, tasks, features, chain: as of ``Source``.
        growth: of its dense weights.
    """

    shapes: Mapping[str, Shape]
    tasks: Sequence[str]
    features: Sequence[str]
    chain: Sequence[str] | None
    growth: Growth


class Match(NamedTuple):
    """A tensor that is loaded.

    Attributes:
        source: its name there.
        rows: rows that are copied, of a table; None for a dense weight.
        indices: per dimension (here, there) pairs to copy, of a weight with a part per task.
    """

    source: str
    rows: int | None = None
    indices: tuple[Pairs, ...] | None = None


def matches(here: Here, source: Source, initial: Initial) -> dict[str, Match | str]:
    """For every tensor here what it starts from, or why it keeps its initial values.

    Raises:
        UserError: a table has fewer rows or another dimension here; a name of ``names`` is not
            there, or not here, or is taken.
    """
    rename = _renaming(here, source, initial)
    there = {rename(name): name for name in source.shapes}
    their_tasks = [_renamed_part(task, initial.names) for task in source.tasks]
    found: dict[str, Match | str] = {}
    for name, shape in here.shapes.items():
        if _NOT_WEIGHTS in name:
            continue
        if TABLES in name:
            origin = there.get(name) or _origin_of_new_task(
                name, there, their_tasks, here.tasks, initial
            )
            found[name] = (
                Match(origin, rows=_rows(name, shape, origin, source.shapes[origin]))
                if origin is not None
                else "not in the other run"
            )
        elif name in there:
            other = _other_meaning(name, here, source, initial)
            found[name] = other or _dense(name, here, there[name], source, their_tasks)
        else:
            found[name] = "not in the other run"
    return found


def _other_meaning(name: str, here: Here, source: Source, initial: Initial) -> str | None:
    """Why the numbers of a weight of the right shape would mean something else here."""
    features = [_renamed_part(part, initial.names) for part in source.features or here.features]
    if features != list(here.features) and name.removeprefix(_MODEL) in here.growth.features:
        return "reads other features there"
    chain = [_renamed_part(part, initial.names) for part in source.chain or ()]
    if chain != list(here.chain or ()):
        return "the tasks follow one another in another order there"
    return None


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


def _rows(name: str, here: Shape, origin: str, there: Shape) -> int:
    table = name.rsplit(".", 2)[1]
    if here[1] != there[1]:
        raise UserError(
            f"--init-from: {table} has dimension {here[1]}, {origin} there has {there[1]}; "
            "set embedding.dim to the same"
        )
    if here[0] < there[0]:
        raise UserError(
            f"--init-from: {table} has {here[0]} rows, {origin} there has {there[0]}; a vocabulary "
            "may grow but not shrink (ids would mean other values)"
        )
    return there[0]


def _dense(
    name: str, here: Here, origin: str, source: Source, their_tasks: Sequence[str]
) -> Match | str:
    shape, there = here.shapes[name], source.shapes[origin]
    growth = here.growth.tasks.get(name.removeprefix(_MODEL))
    if list(their_tasks) == list(here.tasks) or growth is None:
        return Match(origin) if shape == there else f"shape {list(shape)}, there {list(there)}"
    if len(shape) != len(there):
        return f"shape {list(shape)}, there {list(there)}"
    common = [(i, list(their_tasks).index(t)) for i, t in enumerate(here.tasks) if t in their_tasks]
    numbers = len(here.tasks), len(their_tasks)
    indices: list[Pairs] = []
    for sizes, block in zip(zip(shape, there, strict=True), growth, strict=True):
        pairs = _pairs(sizes, block, numbers, common)
        if pairs is None:
            return f"shape {list(shape)}, there {list(there)}, or other tasks"
        indices.append(pairs)
    return Match(origin, indices=tuple(indices)) if common else "no task in common"


def _pairs(
    sizes: tuple[int, int], block: int, numbers: tuple[int, int], common: Pairs
) -> Pairs | None:
    """A dimension of some shared places, then a block per task; None if the sizes are not so."""
    shared = sizes[0] - numbers[0] * block
    if shared < 0 or sizes[1] != shared + numbers[1] * block:
        return None
    own = (
        (shared + i * block + k, shared + j * block + k) for i, j in common for k in range(block)
    )
    return (*((i, i) for i in range(shared)), *own)


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
