"""What a schema may say, and what the user is told where it may not."""

import json

import pytest

from stem_torchrec.data.schema import Feature, Schema, Task, load_schema
from stem_torchrec.errors import UserError

SCHEMA = Schema(
    features=(
        Feature(name="user", kind="id", side="user", num_embeddings=10, encoding="vocabulary"),
        Feature(name="age", kind="dense", side="user"),
        Feature(name="item", kind="id", side="item", num_embeddings=7),
        Feature(name="seen", kind="bag", num_embeddings=7, pooling="mean", table="item"),
    ),
    tasks=(Task(name="click"), Task(name="like", column="is_like")),
    sample_weight="w",
    group="user_id",
)


def test_a_saved_schema_loads_as_it_was(tmp_path):
    SCHEMA.save(tmp_path)
    assert load_schema(tmp_path) == SCHEMA


def test_views():
    assert [f.name for f in SCHEMA.sparse] == ["user", "item", "seen"]
    assert [f.name for f in SCHEMA.dense] == ["age"]
    assert SCHEMA.task_names == ("click", "like")
    assert [task.label_column for task in SCHEMA.tasks] == ["click", "is_like"]
    assert [f.table_name for f in SCHEMA.sparse] == ["user", "item", "item"]


def test_select_keeps_the_features_order_and_takes_the_tasks():
    chosen = SCHEMA.select(features=["seen", "age", "user"], tasks=["like", "click"])
    assert [f.name for f in chosen.features] == ["user", "age", "seen"]
    assert chosen.task_names == ("like", "click")
    assert (chosen.sample_weight, chosen.group) == ("w", "user_id")
    assert SCHEMA.select() == SCHEMA


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"features": ["user", "nobody"]}, r"data\.features: unknown 'nobody'.*user, age, item"),
        ({"tasks": ["buy"]}, r"tasks\.names: unknown 'buy'; the data has click, like"),
        ({"features": ["user", "user"]}, r"data\.features: 'user' is named twice"),
        ({"tasks": []}, r"tasks\.names: empty"),
        ({"features": ["age"]}, "at least one id or bag feature"),
    ],
)
def test_a_wrong_choice_is_the_users_error(choice, message):
    with pytest.raises(UserError, match=message):
        SCHEMA.select(**choice)


def content(**changes):
    return json.loads(SCHEMA.model_dump_json()) | changes


ID = {"name": "a", "kind": "id", "num_embeddings": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": []}, "features"),
        ({"features": [{"name": "a", "kind": "id"}]}, "'a'.*needs num_embeddings"),
        ({"features": [ID, {"name": "b", "kind": "dense", "num_embeddings": 3}]}, "'b'.*no table"),
        ({"features": [ID | {"num_embeddings": 0}]}, r"num_embeddings.*greater than or equal to 1"),
        ({"features": [ID | {"name": "a.b"}]}, r"features\.0\.name"),
        ({"features": [ID | {"kind": "text"}]}, r"features\.0\.kind.*'id', 'bag' or 'dense'"),
        ({"features": [ID, ID]}, r"feature names occur twice: \['a'\]"),
        (
            {"features": [ID, ID | {"name": "b", "table": "a", "num_embeddings": 4}]},
            "share table 'a' differ in num_embeddings",
        ),
        (
            {"features": [ID, ID | {"name": "b", "table": "c"}]},
            "'b': table 'c' is not .*allowed: a",
        ),
        (
            {"features": [ID, {"name": "d", "kind": "dense"}, ID | {"name": "b", "table": "d"}]},
            "'b': table 'd' is not that of an id or bag feature; allowed: a",
        ),
        (
            {
                "features": [
                    ID,
                    ID | {"name": "b", "table": "a"},
                    ID | {"name": "c", "table": "b"},
                ]
            },
            "'c': table 'b' is not .*allowed: a",
        ),
        *(
            ({"features": [ID | {"table": table}]}, r"features\.0\.table")
            for table in ("", "*", "a.b", "../../x", "a\n")
        ),
        (
            {
                "features": [ID | {"name": "x__y"}, ID | {"name": "y"}],
                "tasks": [{"name": "buy"}, {"name": "buy__x"}],
            },
            "name 'buy__x__y': the one of 'buy' for 'x__y' and the one of 'buy__x' for 'y'",
        ),
        (
            {"features": [ID, ID | {"name": "x__a"}], "tasks": [{"name": "shared__x"}]},
            "name 'shared__x__a': the one of 'shared' for 'x__a'",
        ),
        ({"tasks": []}, "tasks"),
        ({"tasks": [{"name": "like"}, {"name": "like"}]}, r"task names occur twice: \['like'\]"),
        ({"tasks": [{"name": "shared"}]}, "may not be named 'shared'"),
        ({"colour": "red"}, "colour.*not permitted"),
        ({"features": [ID | {"num_embeddings": True}]}, r"num_embeddings: .*number, found True"),
        ({"features": [ID | {"num_embeddings": 2**41}]}, r"num_embeddings: .*less than or equal"),
    ],
)
def test_a_wrong_file_is_the_users_error(tmp_path, changes, message):
    (tmp_path / "schema.json").write_text(json.dumps(content(**changes)))
    with pytest.raises(UserError, match=message) as error:
        load_schema(tmp_path)
    assert str(tmp_path / "schema.json") in str(error.value)


def test_a_selection_may_leave_out_the_feature_that_names_a_table():
    chosen = SCHEMA.select(features=["user", "seen"])
    assert [f.table_name for f in chosen.sparse] == ["user", "item"]
    own = Schema(
        features=(SCHEMA.features[0].model_copy(update={"table": "user"}),), tasks=SCHEMA.tasks
    )
    assert own.sparse[0].table_name == "user"


def test_missing_and_damaged_files_are_the_users_error(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        load_schema(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"schema\.json' is missing"):
        load_schema(tmp_path)
    (tmp_path / "schema.json").write_text("{")
    for text in ("{", "[" * 100_000, '{"tasks": 1e999', "9" * 5000, "\ud800"):
        (tmp_path / "schema.json").write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(UserError, match="not valid JSON"):
            load_schema(tmp_path)
    (tmp_path / "schema.json").write_text('{"tasks": [], "tasks": []}')
    with pytest.raises(UserError, match="key 'tasks' is there twice"):
        load_schema(tmp_path)
