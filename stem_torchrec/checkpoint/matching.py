"""Which tensor of another run's checkpoint a tensor of this model starts from.

T tasks here, S tasks there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from stem_torchrec.embeddings import SHARED
from stem_torchrec.errors import UserError
from stem_torchrec.place import Place

TABLES = ".embedding_bags."
_NOT_WEIGHTS = ".fork."
_BY_TASK = (".towers.", ".task_experts.", ".gates.")

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
    """

    shapes: Mapping[str, Shape]
    tasks: Sequence[str]


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


def matches(
    here: Mapping[str, Shape], tasks: Sequence[str], source: Source, initial: Initial
) -> dict[str, Match | str]:
    """For every tensor here what it starts from, or why it keeps its initial values.

    Raises:
        UserError: a table has fewer rows or another dimension here; a name of ``names`` is not
            there.
    """
    rename = _renaming(source, initial)
    there = {rename(name): name for name in source.shapes}
    their_tasks = [_renamed_part(task, initial.names) for task in source.tasks]
    found: dict[str, Match | str] = {}
    for name, shape in here.items():
        if _NOT_WEIGHTS in name:
            continue
        if TABLES in name:
            origin = there.get(name) or _origin_of_new_task(
                name, there, their_tasks, tasks, initial
            )
            found[name] = (
                Match(origin, rows=_rows(name, shape, origin, source.shapes[origin]))
                if origin is not None
                else "not in the other run"
            )
        elif name in there:
            found[name] = _dense(name, shape, there[name], source, their_tasks, tasks)
        else:
            found[name] = "not in the other run"
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
    name: str,
    here: Shape,
    origin: str,
    source: Source,
    their_tasks: Sequence[str],
    tasks: Sequence[str],
) -> Match | str:
    there = source.shapes[origin]
    if list(their_tasks) == list(tasks) or not any(part in name for part in _BY_TASK):
        return Match(origin) if here == there else f"shape {list(here)}, there {list(there)}"
    common = [(i, list(their_tasks).index(t)) for i, t in enumerate(tasks) if t in their_tasks]
    by_task = {0} if ".last." not in name or ".gates." not in name else {0, len(here) - 1}
    indices: list[Pairs] = []
    for dimension, sizes in enumerate(zip(here, there, strict=True)):
        if dimension not in by_task:
            pairs = _same(sizes)
        elif dimension == 0:
            pairs = _blocks(sizes, (len(tasks), len(their_tasks)), common)
        else:
            pairs = _experts(sizes, (len(tasks), len(their_tasks)), common)
        if pairs is None:
            return f"shape {list(here)}, there {list(there)}, or other tasks"
        indices.append(pairs)
    return Match(origin, indices=tuple(indices)) if common else "no task in common"


def _same(sizes: tuple[int, int]) -> Pairs | None:
    return tuple((i, i) for i in range(sizes[0])) if sizes[0] == sizes[1] else None


def _blocks(sizes: tuple[int, int], tasks: tuple[int, int], common: Pairs) -> Pairs | None:
    """A dimension that is a block per task."""
    block, rest = divmod(sizes[0], tasks[0])
    if rest or sizes[1] != block * tasks[1]:
        return None
    return tuple((i * block + k, j * block + k) for i, j in common for k in range(block))


def _experts(sizes: tuple[int, int], tasks: tuple[int, int], common: Pairs) -> Pairs | None:
    """A gate's outputs: one per shared expert, then, if it reads all tasks', a block per task."""
    if tasks[0] == tasks[1]:
        return None  # the numbers do not tell how many are the tasks'
    block, rest = divmod(sizes[0] - sizes[1], tasks[0] - tasks[1])
    shared = sizes[0] - tasks[0] * block
    if rest or block < 0 or shared < 0:
        return None
    own = _blocks((tasks[0] * block, tasks[1] * block), tasks, common) or ()
    return (*((i, i) for i in range(shared)), *((shared + i, shared + j) for i, j in own))


def _renaming(source: Source, initial: Initial) -> Callable[[str], str]:
    known = {part for name in source.shapes for part in _parts(name)} | set(source.tasks)
    for old, _ in initial.names:
        if old not in known:
            raise UserError(
                f"--init-map: {old!r} is no part of a name in {initial.run_dir}; tasks there: "
                f"{', '.join(source.tasks)}"
            )

    def renamed(name: str) -> str:
        return ".".join(
            "__".join(_renamed_part(piece, initial.names) for piece in part.split("__"))
            for part in name.split(".")
        )

    return renamed


def _parts(name: str) -> list[str]:
    return [piece for part in name.split(".") for piece in part.split("__")]


def _renamed_part(part: str, names: Sequence[tuple[str, str]]) -> str:
    return dict(names).get(part, part)
