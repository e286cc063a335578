"""What a prepared folder holds: its features, tasks and optional columns (``schema.json``)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from stem_torchrec.config.frozen import Frozen
from stem_torchrec.errors import UserError, did_you_mean, shown
from stem_torchrec.storage.folder_choice import usable
from stem_torchrec.storage.place import Place, place_of, require_bucket

SPLITS = ("train", "valid", "test")
SCHEMA_FILE = "schema.json"
MAX_EMBEDDINGS = 1 << 40
SHARED = "shared"
"""The owner of the tables that all tasks share."""

_NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"


class Vocabulary(Frozen):
    """What tells a vocabulary from every other: see ``data/vocabulary_identity.py``."""

    num_values: int = Field(ge=0, description="values with an id of their own")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="hash over them in the ids' order")


class Feature(Frozen):
    """One input column.

    ``id`` holds one integer per row, ``bag`` a list of integers that is pooled, ``dense`` a
    float. Ids lie in ``[0, num_embeddings)``; 0 stands for rare, unseen and missing values.
    """

    name: str = Field(pattern=_NAME, description="column name")
    kind: Literal["id", "bag", "dense"]
    side: Literal["user", "item", "context"] = "context"
    num_embeddings: int | None = Field(
        None, ge=1, le=MAX_EMBEDDINGS, description="rows of the feature's table"
    )
    pooling: Literal["sum", "mean"] = Field("sum", description="how a bag's rows are pooled")
    table: str | None = Field(
        None, pattern=_NAME, description="feature whose table this one shares"
    )
    encoding: Literal["vocabulary", "identity", "hash", "bucket"] = "identity"
    vocabulary: Vocabulary | None = Field(None, description="identity of the table's vocabulary")
    hash_function: str | None = Field(None, description="name of the hash that made the ids")

    @property
    def table_name(self) -> str:
        """Name of the table without its owner: the feature's own, or the shared one."""
        return self.table or self.name

    @model_validator(mode="after")
    def _rows_where_needed(self) -> "Feature":
        if self.kind != "dense" and self.num_embeddings is None:
            raise ValueError(f"feature {self.name!r}: kind {self.kind!r} needs num_embeddings")
        if self.kind == "dense" and (self.num_embeddings or self.table):
            raise ValueError(f"feature {self.name!r}: a dense feature has no table")
        return self


class Task(Frozen):
    """One binary outcome; its column holds 0, 1 or null (not observed)."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    column: str | None = Field(None, description="label column, the task's name if null")

    @property
    def label_column(self) -> str:
        return self.column or self.name


class Schema(Frozen):
    """Columns of a prepared folder, in the order in which every part of the program uses them.

    Attributes:
        features: ``id``, ``bag`` and ``dense`` columns with their side and table.
        tasks: binary outcomes.
        sample_weight: name of the float column with each row's weight, or None.
        group: name of the integer column with the group of GAUC, or None.

    Raises:
        UserError: ``load`` and ``select``: a file or name is missing, or does not fit.
        pydantic.ValidationError: of ``Schema(...)``: the columns do not fit together.

    Example:
        >>> import stem_torchrec as st
        >>> schema = st.Schema.load("prepared/mine")
        >>> schema.task_names, [feature.name for feature in schema.dense]
        (('click', 'like'), ['dense_0'])
        >>> [feature.name for feature in schema.select(tasks=["like"]).tasks]
        ['like']
    """

    features: tuple[Feature, ...] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    sample_weight: str | None = Field(None, description="float column: weight of the row")
    group: str | None = Field(None, description="integer column: the group of GAUC, e.g. the user")

    @property
    def sparse(self) -> tuple[Feature, ...]:
        """Features that are looked up in tables (ids and bags)."""
        return tuple(f for f in self.features if f.kind != "dense")

    @property
    def dense(self) -> tuple[Feature, ...]:
        """Features that are numbers."""
        return tuple(f for f in self.features if f.kind == "dense")

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names, in their order."""
        return tuple(task.name for task in self.tasks)

    def select(
        self, *, features: Sequence[str] | None = None, tasks: Sequence[str] | None = None
    ) -> "Schema":
        """The schema with the named features and tasks only; ``None`` keeps all.

        Features keep the schema's order, tasks take the order given.

        Raises:
            UserError: a name is not in the schema, or is given twice.
        """
        by_feature = {f.name: f for f in self.features}
        by_task = {t.name: t for t in self.tasks}
        if features is not None:
            _refuse_unknown("data.features", features, by_feature)
        if tasks is not None:
            _refuse_unknown("tasks.names", tasks, by_task)
        kept_features = [f for f in self.features if features is None or f.name in features]
        kept_tasks = self.tasks if tasks is None else [by_task[name] for name in tasks]
        return schema_from(
            {**self.model_dump(), "features": kept_features, "tasks": kept_tasks},
            "the selected features and tasks",
        )

    @model_validator(mode="after")
    def _names_fit_together(self) -> "Schema":
        for what, names in (
            ("feature", [f.name for f in self.features]),
            ("task", list(self.task_names)),
        ):
            if doubled := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{what} names occur twice: {sorted(doubled)}")
        if SHARED in self.task_names:
            raise ValueError("a task may not be named 'shared': that owner holds the shared tables")
        if not self.sparse:
            raise ValueError("at least one id or bag feature is needed")
        rows: dict[str, int | None] = {}
        pooling: dict[str, str] = {}
        for feature in self.sparse:
            table = feature.table_name
            if rows.setdefault(table, feature.num_embeddings) != feature.num_embeddings:
                raise ValueError(f"features that share table {table!r} differ in num_embeddings")
            if feature.kind == "bag" and (
                pooling.setdefault(table, feature.pooling) != feature.pooling
            ):
                raise ValueError(f"bags that share table {table!r} differ in pooling")
        _refuse_equal_tables((SHARED, *self.task_names), rows)
        return self

    @classmethod
    def load(cls, folder: str | Place) -> "Schema":
        """The schema of a prepared folder, or of its URL in a store.

        Raises:
            UserError: folder or file is missing, or its content is no schema.
        """
        return load_schema(place_of(folder))

    def save(self, folder: Place) -> None:
        """Write ``schema.json`` into a folder."""
        (folder / SCHEMA_FILE).write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n")

    def content(self) -> dict[str, Any]:
        """As JSON has it; ``schema_from`` reads it."""
        return self.model_dump(mode="json", exclude_none=True)


def load_schema(folder: Place) -> Schema:
    """Read ``folder/schema.json``.

    Raises:
        UserError: the folder or the file is missing, or its content is not a schema.
    """
    path = folder / SCHEMA_FILE
    with usable("data.path", folder):
        if not folder.is_dir():
            require_bucket(folder)
            raise UserError(
                f"data.path: {str(folder)!r} is not a folder; expected a prepared data set"
            )
        if not path.is_file():
            raise UserError(f"data.path: {str(path)!r} is missing; a prepared folder has one")
        text = path.read_bytes()
    try:
        content = json.loads(text, object_pairs_hook=_each_once)
    except RecursionError:
        raise UserError(f"{path}: not valid JSON (nested too deep)") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    schema = schema_from(content, str(path))
    _require_tables(schema, str(path))
    return schema


def _require_tables(schema: Schema, where: str) -> None:
    """Refuse a shared table that is nobody's. Only of a whole schema: of a selection the feature
    that gives the table its name may be left out.

    Raises:
        UserError: names the feature, the table and the tables that there are.
    """
    owners = [feature.name for feature in schema.sparse if feature.table in (None, feature.name)]
    for feature in schema.sparse:
        if feature.table_name not in owners:
            raise UserError(
                f"{where}: feature {feature.name!r}: table {feature.table!r} is not that of an id "
                f"or bag feature; allowed: {', '.join(owners)}"
            )


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return content


def schema_from(content: object, where: str) -> Schema:
    """The schema that JSON content stands for.

    Raises:
        UserError: it stands for none.
    """
    try:
        return Schema.model_validate(content)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in e['loc']) or 'schema'}: {_told(e)}"
            for e in error.errors()
        ]
        raise UserError(f"{where}: " + "; ".join(lines)) from None


def _refuse_equal_tables(owners: Iterable[str], tables: Iterable[str]) -> None:
    """Raise ValueError if two owners' tables would have one name."""
    of_name: dict[str, str] = {}
    for owner in owners:
        for table in tables:
            name, what = f"{owner}__{table}", f"of {owner!r} for {table!r}"
            if (other := of_name.setdefault(name, what)) != what:
                raise ValueError(
                    f"two tables have the name {name!r}: the one {other} and the one {what}; "
                    "give a task or a feature another name"
                )


def _told(error: Mapping[str, Any]) -> str:
    """What is wrong, and what is there where the message alone does not tell."""
    message = error["msg"].removeprefix("Value error, ")
    found = error["input"]
    return message if isinstance(found, Mapping) else f"{message}, found {shown(found)}"


def _refuse_unknown(key: str, names: Sequence[str], known: dict) -> None:
    if unknown := [name for name in names if name not in known]:
        hint = did_you_mean(unknown[0], known)
        raise UserError(f"{key}: unknown {unknown[0]!r}{hint}; the data has {', '.join(known)}")
    if doubled := [name for name in names if list(names).count(name) > 1]:
        raise UserError(f"{key}: {doubled[0]!r} is named twice")
    if not names:
        raise UserError(f"{key}: empty; the data has {', '.join(known)}")
