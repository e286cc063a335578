"""Features that give away a label, and names that are not a feature's to take."""

from pathlib import Path

import duckdb
import pytest
from pydantic import ValidationError

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.tables.column_references import columns_decisive, columns_read
from stem_torchrec.prepare.tables.prepare_files import prepare_files
from tests.prepare.raw_tables import describe, rows_of, write_text

ROWS = [["user", "rating", "shown", "bought"], *([k % 3, k % 5, k % 2, k % 2] for k in range(12))]
DESCRIPTION = """
features: [{name: user}]
labels: {like: rating >= 4, buy: CASE WHEN shown = 1 THEN bought END}
split: {by: random, shares: [1, 0, 0]}
shuffle: false
min_count: 1
"""


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"name": "rating"}, "features.rating: reads column 'rating', of which label 'like' is"),
        ({"name": "f", "column": "bought"}, "features.f: reads column 'bought'.* label 'buy'"),
        ({"name": "f", "expression": "user + 0 * RATING"}, "reads column 'rating'"),
        ({"name": "f", "expression": '"Bought" % 2'}, "reads column 'bought'"),
    ],
)
def test_a_feature_that_reads_what_a_label_is_made_of(
    tmp_path: Path, feature: dict[str, str], message: str
) -> None:
    source = write_text(tmp_path / "raw.csv", ROWS)
    features = [{"name": "user"}, feature]
    with pytest.raises(UserError, match=message):
        prepare_files([source], describe(DESCRIPTION, features=features), tmp_path / "out")
    described = describe(DESCRIPTION, features=features, may_read_labels=[feature["name"]])
    prepare_files([source], described, tmp_path / "out")
    assert feature["name"] in rows_of(tmp_path / "out", "train")[0]


def test_a_condition_of_being_observed_may_be_a_feature(tmp_path: Path) -> None:
    source = write_text(tmp_path / "raw.csv", ROWS)
    described = describe(DESCRIPTION, features=[{"name": "user"}, {"name": "shown"}])
    prepare_files([source], described, tmp_path / "out")
    assert [row["buy"] for row in rows_of(tmp_path / "out", "train")][:2] == [None, 1]


@pytest.mark.parametrize(
    ("expression", "read", "decisive"),
    [
        ("a + B.c", "ab", "ab"),
        ("CASE WHEN a > 1 THEN b END", "ab", "b"),
        ("CASE WHEN a > 1 THEN b ELSE NULL END = 1", "ab", "b"),
        ("CASE WHEN a > 1 THEN 1 ELSE 0 END", "a", "a"),
        ("CASE a WHEN 1 THEN b WHEN 2 THEN c END", "abc", "abc"),
        ("CASE WHEN a THEN CASE WHEN b THEN c END END", "abc", "c"),
        ("len([v for v in a if v > c])", "ac", "ac"),
        ("'b' || 1", "", ""),
        ("#1", "abc", "abc"),
    ],
)
def test_columns_of_an_expression(expression: str, read: str, decisive: str) -> None:
    with duckdb.connect() as connection:
        assert columns_read(connection, expression, "abc") == set(read)
        assert columns_decisive(connection, expression, "abc") == set(decisive)


@pytest.mark.parametrize(
    "changed",
    [{"features": [{"name": "RowId", "column": "user"}]}, {"labels": {"rowid": "shown"}}],
)
def test_the_engines_own_name_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"(?i)'rowid' is a name of the engine's"):
        describe(DESCRIPTION, **changed)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_names_that_sql_or_the_tables_know_are_names_like_others(tmp_path: Path, kind: str) -> None:
    names = ["select", "order", "value", "id", "count", "v", "bag", "place", "rows", "placed", "x"]
    columns = [
        *names,
        'a "b"',
        "it's",
        "rowid",
        "file_row_number",
        "filename",
        "text of select",
        "y",
    ]
    rows = [[f"{column[0]}{k}" for column in columns[:-1]] + [k % 2] for k in (1, 2)]
    source = tmp_path / f"raw.{kind}"
    if kind == "csv":
        write_text(source, [[c.replace('"', "") for c in columns], *rows])
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table(table), source)
    quotes = 'a "b"' if kind == "parquet" else "a b"
    features = [
        *({"name": name} for name in names),
        {"name": "group", "kind": "bag", "column": "v", "separator": "|"},
        *({"name": f"f{k}", "column": c} for k, c in enumerate([quotes, "it's", *columns[-5:-1]])),
    ]
    described = describe(
        DESCRIPTION,
        features=features,
        labels={"label": "y", "where": "y = 1"},
        format={"type": "parquet" if kind == "parquet" else "delimited", "quote": None},
    )
    prepare_files([source], described, tmp_path / "out")
    found = rows_of(tmp_path / "out", "train")
    expected = {name: [1, 2] for name in [*names, *(f"f{k}" for k in range(6))]}
    expected |= {"group": [[1], [2]], "label": [1, 0], "where": [1, 0]}
    assert {name: [row[name] for row in found] for name in found[0]} == expected
