"""Whether the features and tasks of a data folder mean what they meant for a run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.data.vocabulary_identity import identity_of, vocabulary_file
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place


class Compared(NamedTuple):
    """What is left to say of features that do not mean something else.

    Attributes:
        grown: names of those with more ids than before, the old ones unchanged.
        unknown: names of those whose ids have no identity on one of both sides.
    """

    grown: list[str]
    unknown: list[str]


class Fitted(NamedTuple):
    """A run's schema, to read a data folder with.

    Attributes:
        schema: features and tasks in the run's order.
        notes: what the user should know, one line each.
    """

    schema: Schema
    notes: list[str]


def fitted(run: Schema, there: str, data: Schema, folder: Place) -> Fitted:
    """A run's schema for a data folder that may be another one than it was trained on.

    Columns are found by name, so their order may differ and there may be more of them. The group
    of GAUC is the folder's: nothing is learnt from it.

    Args:
        there: what the run is called.

    Raises:
        UserError: a feature or task is missing or means something else; names it.
    """
    features = {feature.name: feature for feature in data.features}
    tasks = {task.name: task for task in data.tasks}
    for what, wanted, found in (
        ("feature", [feature.name for feature in run.features], features),
        ("task", list(run.task_names), tasks),
    ):
        if missing := [name for name in wanted if name not in found]:
            raise UserError(
                f"{folder}: {what} {missing[0]!r} of {there} is missing; it has {', '.join(found)}"
            )
    compared = compare_features([(f, features[f.name]) for f in run.features], there, folder)
    compare_tasks([(task, tasks[task.name]) for task in run.tasks], there, folder)
    if run.sample_weight != data.sample_weight:
        raise UserError(
            f"{folder}: sample_weight is {data.sample_weight!r}, {there} has {run.sample_weight!r}"
        )
    notes = [
        f"{folder}: the {what} stand in another order than in {there}; they are taken by name"
        for what, wanted, found in (
            ("features", [feature.name for feature in run.features], features),
            ("tasks", list(run.task_names), tasks),
        )
        if [name for name in found if name in wanted] != wanted
    ]
    if compared.grown:
        notes.append(
            f"{folder}: {', '.join(compared.grown)} may have ids that {there} has no row for; a "
            "row of the data with one of them is refused"
        )
    return Fitted(
        run.model_copy(update={"group": data.group}), [*notes, *unknown_ids(compared, folder)]
    )


def compare_features(
    pairs: Iterable[tuple[Feature, Feature]], there: str, folder: Place
) -> Compared:
    """Compare features of a run with those of a data folder.

    Args:
        pairs: (the run's, the folder's).

    Raises:
        UserError: one means something else now: another kind, pooling, table or encoding, fewer
            rows, a vocabulary that is neither the same nor an extension.
    """
    compared = Compared([], [])
    for then, now in pairs:
        for what, before, here in _properties(then, now):
            if before != here:
                raise UserError(
                    f"{folder}: feature {now.name!r}: {what} is {here!r}, {there} has {before!r}"
                )
        if now.num_embeddings != then.num_embeddings:
            _check_rows(then, now, there, folder)
            compared.grown.append(now.name)
        if now.encoding == "vocabulary":
            if then.vocabulary is None or now.vocabulary is None:
                compared.unknown.append(now.name)
            elif then.vocabulary != now.vocabulary:
                _check_extension(then, now, there, folder)
        if now.encoding == "hash" and None in (then.hash_function, now.hash_function):
            compared.unknown.append(now.name)
    return compared


def compare_tasks(pairs: Iterable[tuple[Task, Task]], there: str, folder: Place) -> None:
    """Raise UserError where a task of a run (first) reads another label in a folder (second)."""
    for then, now in pairs:
        if then.label_column != now.label_column:
            raise UserError(
                f"{folder}: task {now.name!r}: its label column is {now.label_column!r}, {there} "
                f"has {then.label_column!r}"
            )


def renamed(schema: Schema, names: Mapping[str, str]) -> Schema:
    """A run's schema as ``names`` (there -> here) calls its features and tasks."""

    def here(name: str) -> str:
        return names.get(name, name)

    features = tuple(
        feature.model_copy(
            update={"name": here(feature.name), "table": here(feature.table_name)}
            if feature.kind != "dense"
            else {"name": here(feature.name)}
        )
        for feature in schema.features
    )
    tasks = tuple(Task(name=here(task.name), column=task.label_column) for task in schema.tasks)
    return schema.model_copy(update={"features": features, "tasks": tasks})


def unknown_ids(compared: Compared, folder: Place) -> list[str]:
    """One warning, if the identity of some ids is not known."""
    if not compared.unknown:
        return []
    return [
        f"{folder}: whether the ids of {_some(compared.unknown)} stand for the same values is not "
        "known: the folder, or the run's, was prepared without identities; prepare it anew to have "
        "them compared"
    ]


def _properties(then: Feature, now: Feature) -> Iterable[tuple[str, object, object]]:
    yield "kind", then.kind, now.kind
    if now.kind == "dense":
        return
    yield "encoding", then.encoding, now.encoding
    yield "table", then.table_name, now.table_name
    if now.kind == "bag":
        yield "pooling", then.pooling, now.pooling
    if None not in (then.hash_function, now.hash_function):
        yield "hash_function", then.hash_function, now.hash_function
    if now.encoding in ("hash", "bucket"):  # with other buckets a value has another id
        yield "num_embeddings", then.num_embeddings, now.num_embeddings


def _check_rows(then: Feature, now: Feature, there: str, folder: Place) -> None:
    if (now.num_embeddings or 0) < (then.num_embeddings or 0):
        raise UserError(
            f"{folder}: feature {now.name!r} has num_embeddings {now.num_embeddings}, {there} has "
            f"{then.num_embeddings}; a vocabulary may grow but not shrink (ids would mean other "
            "values)"
        )


def _check_extension(then: Feature, now: Feature, there: str, folder: Place) -> None:
    """Raise UserError unless the folder's vocabulary starts with the values of the run's."""
    assert then.vocabulary is not None
    assert now.vocabulary is not None
    before, here = then.vocabulary.num_values, now.vocabulary.num_values
    file = vocabulary_file(folder, now)
    what = f"{folder}: feature {now.name!r}: its ids stand for other values than in {there}"
    if here <= before:
        raise UserError(f"{what} ({here} values, there {before})")
    if not file.is_file():
        raise UserError(
            f"{what}, or for more of them: {file} is missing, which would tell ({here} values, "
            f"there {before})"
        )
    if identity_of(file, first=before) != then.vocabulary:
        raise UserError(f"{what}: the first {before} of its {here} are not those {before}")


def _some(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more features" if more > 0 else "")
