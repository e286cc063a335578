"""What is found in the footers, before anything is read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.config.days import parse_days
from stem_torchrec.data.manifest import check_split
from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.errors import UserError

SCHEMA = Schema(
    features=(
        Feature(name="user", kind="id", num_embeddings=100),
        Feature(name="hist", kind="bag", num_embeddings=50),
        Feature(name="price", kind="dense"),
    ),
    tasks=(Task(name="click", column="is_click"),),
    sample_weight="w",
    group="g",
)


def columns(num_rows=4, **changed):
    made = {
        "user": pa.array(range(num_rows)),
        "hist": pa.array([[1, 2]] * num_rows),
        "price": pa.array([0.5] * num_rows),
        "is_click": pa.array([0] * num_rows, pa.int8()),
        "w": pa.array([1.0] * num_rows),
        "g": pa.array(range(num_rows)),
    }
    return pa.table({**made, **changed})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train").mkdir()
    return tmp_path


def write(folder, table, name="a.parquet", **options):
    pq.write_table(table, folder / "train" / name, **options)


def test_row_groups_come_in_file_order_without_empty_ones(folder):
    write(folder, columns(5), "b.parquet", row_group_size=2)
    write(folder, columns(3), "a.parquet")
    write(folder, columns().slice(0, 0), "c.parquet")
    write(folder, columns(7), ".part.parquet")
    found = check_split(folder, "train", SCHEMA)
    assert [(g.file.name, g.index, g.num_rows) for g in found.row_groups] == [
        ("a.parquet", 0, 3),
        ("b.parquet", 0, 2),
        ("b.parquet", 1, 2),
        ("b.parquet", 2, 1),
    ]
    assert found.num_rows == 8


def test_a_missing_split(folder):
    with pytest.raises(UserError, match=r"valid' is not a folder"):
        check_split(folder, "valid", SCHEMA)


def test_a_split_without_files(folder):
    with pytest.raises(UserError, match=r"train' has no \*\.parquet file"):
        check_split(folder, "train", SCHEMA)


def test_a_split_without_rows(folder):
    write(folder, columns().slice(0, 0))
    with pytest.raises(UserError, match=r"train' have no rows"):
        check_split(folder, "train", SCHEMA)


@pytest.mark.parametrize("column", ["user", "hist", "price", "is_click", "w", "g"])
def test_a_missing_column_in_the_second_file(folder, column):
    write(folder, columns())
    write(folder, columns().drop_columns([column]), "b.parquet")
    with pytest.raises(UserError, match=rf"b\.parquet: .*{column!r} is missing"):
        check_split(folder, "train", SCHEMA)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user", pa.array([1.0] * 4), r"id column 'user' has type double; allowed: any integer"),
        ("user", pa.array(["1"] * 4), r"type string; allowed: any integer"),
        ("hist", pa.array([1] * 4), r"bag column 'hist' has type int64; allowed: list"),
        ("hist", pa.array([[0.5]] * 4), r"type list<.*double>; allowed: list"),
        ("hist", pa.array([[[1]]] * 4), r"type list<.*list<.*allowed: list"),
        ("price", pa.array(["1"] * 4), r"dense column 'price' .*allowed: any float or integer"),
        ("price", pa.array([True] * 4), r"dense column 'price' has type bool"),
        ("is_click", pa.array(["1"] * 4), r"label column 'is_click' .*allowed: bool"),
        ("w", pa.array([True] * 4), r"sample_weight column 'w' has type bool"),
        ("g", pa.array([0.5] * 4), r"group column 'g' has type double; allowed: any integer"),
    ],
)
def test_a_wrong_type_names_file_column_and_both_types(folder, column, values, message):
    write(folder, columns())
    write(folder, columns(**{column: values}), "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: .*" + message):
        check_split(folder, "train", SCHEMA)


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int16(), pa.uint64()])
def test_allowed_types_may_differ_between_files(folder, kind):
    write(folder, columns())
    changed = columns(
        user=pa.array([1] * 4, kind),
        hist=pa.array([[1, 2]] * 4, pa.list_(kind, 2)),
        price=pa.array([1] * 4, kind),
        is_click=pa.array([True] * 4),
        w=pa.array([1] * 4, kind),
        g=pa.array([1] * 4, kind),
    )
    write(folder, changed, "b.parquet")
    write(folder, columns(hist=pa.array([[1]] * 4, pa.large_list(kind))), "c.parquet")
    assert check_split(folder, "train", SCHEMA).num_rows == 12


def test_a_column_that_occurs_twice(folder):
    table = columns()
    write(folder, table.append_column("user", table["user"]))
    with pytest.raises(UserError, match=r"'user' occurs 2 times"):
        check_split(folder, "train", SCHEMA)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user", [0, 1, 100, 3], r"feature 'user' has id 100; allowed: 0 to 99"),
        ("user", [0, 1, 2, -7], r"feature 'user' has id -7; allowed: 0 to 99"),
        ("hist", [[0], [], None, [1, 50]], r"feature 'hist' has id 50; allowed: 0 to 49"),
    ],
)
def test_statistics_show_ids_outside_the_table(folder, column, values, message):
    write(folder, columns(**{column: pa.array(values)}), row_group_size=2)
    with pytest.raises(UserError, match=rf"a\.parquet, row group 1: {message}"):
        check_split(folder, "train", SCHEMA)


@pytest.mark.parametrize("size", [0, 3, -20])
def test_a_damaged_footer(folder, size):
    write(folder, columns())
    file = folder / "train" / "b.parquet"
    write(folder, columns(), "b.parquet")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read as Parquet"):
        check_split(folder, "train", SCHEMA)


def test_only_columns_of_the_schema_matter(folder):
    write(folder, columns(user=pa.array(["x"] * 4)))
    selected = SCHEMA.select(features=["hist"])
    assert check_split(folder, "train", selected).num_rows == 4


def test_partition_folders_and_their_days(folder):
    for name, num_rows in (
        ("date=2022-04-08/b.parquet", 3),
        ("date=2022-04-09/hour=1/a.parquet", 5),
        ("date=2022-04-09/_temporary/x.parquet", 7),
        (".date=2022-04-09/x.parquet", 7),
        ("20220410.parquet", 2),
    ):
        (folder / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder, columns(num_rows), name)
    assert sorted(g.num_rows for g in check_split(folder, "train", SCHEMA).row_groups) == [2, 3, 5]
    days = parse_days("2022-04-09:2022-04-10")
    chosen = check_split(folder, "train", SCHEMA, days)
    assert [group.num_rows for group in chosen.row_groups] == [2, 5]


def test_a_column_that_changes_type_between_files(folder):
    write(folder, columns(), "20220408.parquet")
    write(folder, columns(user=pa.array([[1]] * 4)), "20220409.parquet")
    with pytest.raises(UserError, match=r"20220409\.parquet: id column 'user' has type list"):
        check_split(folder, "train", SCHEMA)
