"""What a folder's features and tasks mean is compared with what they meant for a run."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.identity import fitted
from stem_torchrec.data.schema import Feature, Schema, Task, Vocabulary
from stem_torchrec.data.vocabulary_identity import identity_of, vocabulary_file
from stem_torchrec.errors import UserError

HASH = "splitmix"
FEATURES: dict[str, dict[str, Any]] = {
    "user": {"kind": "id", "num_embeddings": 4, "encoding": "vocabulary"},
    "item": {"kind": "id", "num_embeddings": 9, "encoding": "hash", "hash_function": HASH},
    "seen": {"kind": "bag", "num_embeddings": 9, "encoding": "hash", "hash_function": HASH},
    "hour": {"kind": "id", "num_embeddings": 24},
    "price": {"kind": "dense"},
}
TASKS = {"click": "click", "like": "liked"}
VALUES = ["b", "a", "c"]


def vocabulary(folder: Path, values: list[str]) -> Vocabulary:
    """Write the values of ``user``; their identity."""
    file = vocabulary_file(folder, Feature(name="user", **FEATURES["user"]))
    (folder / "vocab").mkdir(parents=True, exist_ok=True)
    ids = pa.array(range(1, len(values) + 1), pa.int32())
    pq.write_table(pa.table({"value": values, "id": ids}), file)
    return identity_of(file)


def schema(vocabulary: Vocabulary | None, **changes: Any) -> Schema:
    features = {name: dict(keys) for name, keys in FEATURES.items()}
    features["user"]["vocabulary"] = vocabulary
    tasks = dict(TASKS)
    for name, change in changes.items():
        if name in features:
            features[name] |= change
        else:
            tasks[name] = change
    return Schema(
        features=tuple(Feature(name=name, **keys) for name, keys in features.items()),
        tasks=tuple(Task(name=name, column=column) for name, column in tasks.items()),
    )


@pytest.fixture
def run(tmp_path: Path) -> Schema:
    return schema(vocabulary(tmp_path, VALUES))


def test_the_same_data_needs_no_word(tmp_path: Path, run: Schema) -> None:
    assert fitted(run, "RUN", run, tmp_path) == (run, [])


def test_another_order_is_mapped_by_name(tmp_path: Path, run: Schema) -> None:
    more = Feature(name="new", kind="dense")
    other = run.model_copy(
        update={"features": (*run.features[::-1], more), "tasks": run.tasks[::-1], "group": "user"}
    )
    found = fitted(run, "RUN", other, tmp_path)
    assert found.schema.features == run.features
    assert found.schema.tasks == run.tasks
    assert found.schema.group == "user"
    assert [note.split(": ")[1] for note in found.notes] == [
        "the features stand in another order than in RUN; they are taken by name",
        "the tasks stand in another order than in RUN; they are taken by name",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hour": {"kind": "bag"}}, "feature 'hour': kind is 'bag', RUN has 'id'"),
        ({"seen": {"pooling": "mean"}}, "feature 'seen': pooling is 'mean', RUN has 'sum'"),
        ({"seen": {"table": "item"}}, "feature 'seen': table is 'item', RUN has 'seen'"),
        ({"item": {"encoding": "identity"}}, "feature 'item': encoding is 'identity', RUN has 'h"),
        ({"item": {"num_embeddings": 10}}, "feature 'item': num_embeddings is 10, RUN has 9"),
        ({"item": {"hash_function": "x"}}, "feature 'item': hash_function is 'x', RUN has 'split"),
        ({"hour": {"num_embeddings": 23}}, "feature 'hour' has num_embeddings 23, RUN has 24; a"),
        ({"click": "liked"}, "task 'click': its label column is 'liked', RUN has 'click'"),
    ],
)
def test_what_means_something_else_is_refused(
    tmp_path: Path, run: Schema, changes: Any, message: str
) -> None:
    assert run.features[0].vocabulary is not None
    with pytest.raises(UserError, match=message):
        fitted(run, "RUN", schema(run.features[0].vocabulary, **changes), tmp_path)


@pytest.mark.parametrize("what", ["features", "tasks"])
def test_what_is_missing_is_named(tmp_path: Path, run: Schema, what: str) -> None:
    less = run.model_copy(update={what: getattr(run, what)[:-1]})
    with pytest.raises(UserError, match=r"'(price|like)' of RUN is missing; it has "):
        fitted(run, "RUN", less, tmp_path)


def test_other_sample_weights_are_refused(tmp_path: Path, run: Schema) -> None:
    other = run.model_copy(update={"sample_weight": "weight"})
    with pytest.raises(UserError, match="sample_weight is 'weight', RUN has None"):
        fitted(run, "RUN", other, tmp_path)


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ([*VALUES, "d"], False),
        (["a", "b", "c"], True),
        (["a", "b", "c", "d"], True),
        (["b", "a", "d", "c"], True),
    ],
)
def test_a_vocabulary_may_be_extended(
    tmp_path: Path, run: Schema, values: list[str], refused: bool
) -> None:
    rows = {"num_embeddings": len(values) + 1}
    other = schema(vocabulary(tmp_path, values), user=rows)
    if refused:
        with pytest.raises(UserError, match="feature 'user': its ids stand for other values than"):
            fitted(run, "RUN", other, tmp_path)
        return
    found = fitted(run, "RUN", other, tmp_path)
    assert found.schema == run  # with the run's rows
    assert "user may have ids that RUN has no row for" in found.notes[0]
    vocabulary_file(tmp_path, run.features[0]).unlink()
    with pytest.raises(UserError, match=r"user.parquet is missing, which would tell"):
        fitted(run, "RUN", other, tmp_path)


def test_fewer_values_are_refused(tmp_path: Path, run: Schema) -> None:
    other = schema(vocabulary(tmp_path, VALUES[:2]))
    with pytest.raises(UserError, match=r"its ids stand for other values than in RUN \(2 values"):
        fitted(run, "RUN", other, tmp_path)


def test_without_identities_one_warning_names_them(tmp_path: Path, run: Schema) -> None:
    other = schema(None, item={"hash_function": None}, seen={"hash_function": None})
    for pair in ((run, other), (other, run), (other, other)):
        (note,) = fitted(pair[0], "RUN", pair[1], tmp_path).notes
        assert "whether the ids of user, item, seen stand for the same values is not known" in note
