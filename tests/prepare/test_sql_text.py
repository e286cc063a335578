"""A description's SQL: one pure expression over one row; whatever else is refused by name."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.sql_text import SqlText
from stem_torchrec.prepare.engine.stages import StageLog
from stem_torchrec.prepare.engine.working_database import Resources, working_database
from stem_torchrec.prepare.tables.prepare_files import prepare_files
from tests.prepare.raw_tables import describe, files_under, rows_of, write_text

COLUMNS = ["a", "b", "user", "like", "tags", "ts"]


@pytest.fixture(scope="module")
def parser() -> Iterator[SqlText]:
    with SqlText() as opened:
        yield opened


@pytest.mark.parametrize(
    "text",
    [
        *("a + 1", "CASE WHEN a > 4 THEN b END", "user", '"like"', "a::VARCHAR", "NOT a", "$$x$$"),
        *("[x for x in tags if x > 1]", "list_transform(tags, x -> x + 1)", "tags[1:2]", "a.b"),
        *("extract(hour from ts)", "date '2020-01-01'", "interval 3 days", "a COLLATE nocase"),
        *("try(a / 0)", "a BETWEEN 1 AND 2", "coalesce(a, b) IS NULL", "a -- rest", "nullif(a, 1)"),
        *("json_extract(a, '$.x')", "CAST(a AS STRUCT(x INTEGER))", "list_sum(tags)", "{'x': a}.x"),
    ],
)
def test_what_one_row_decides_passes(parser: SqlText, text: str) -> None:
    parser.require_expression("labels.y", text, COLUMNS)


@pytest.mark.parametrize(
    "text",
    [
        *("(SELECT content FROM read_text('x'))", "a IN (SELECT 1)", "EXISTS (FROM t)"),
        *("1=1) IS NOT NULL; COPY (SELECT 'x') TO 'w'; SELECT (1", "a; DROP TABLE rows", "a, b"),
        *("a FROM 'x.csv'", "a WHERE true", "a LIMIT 1", "a UNION SELECT 1", "a ORDER BY 1"),
        *("*", "t.*", "COLUMNS(*)", "lag(a) OVER ()", "$1", "?", "#1", "DEFAULT", "", "SELECT 1"),
        *("a USING SAMPLE 1", "a QUALIFY true", "a GROUP BY 1", "array(SELECT 1)", "COPY t TO 'x'"),
        "list_transform(tags, x -> (SELECT 1))",
    ],
)
def test_what_is_more_than_an_expression_is_refused(parser: SqlText, text: str) -> None:
    with pytest.raises(UserError, match=r"^labels\.y: "):
        parser.require_expression("labels.y", text, COLUMNS)


@pytest.mark.parametrize(
    "call",
    [
        *("read_text('x')", "read_csv('x')", "glob('x')", "query('SELECT 1')", "sniff_csv('x')"),
        *("query_table('t')", "parquet_scan('x')", "read_blob('x')", "duckdb_secrets()"),
        *(
            "current_setting('temp_directory')",
            "getvariable('x')",
            "nextval('s')",
            "write_log('x')",
        ),
        *("sleep_ms(1)", "pg_sleep(1)", "random()", "RANDOM()", '"random"()', "uuid()"),
        *("now()", "current_date", "current_timestamp", "ago(interval 1 day)", "unnest(tags)"),
        "system.main.random()",
    ],
)
@pytest.mark.parametrize("around", ["{}", "a + {}", "list_transform(tags, x -> {})"])
def test_what_reads_more_than_the_row_is_refused_by_name(
    parser: SqlText, call: str, around: str
) -> None:
    name = call.partition("(")[0].rpartition(".")[2].strip('"').lower()
    with pytest.raises(UserError, match=f"is not allowed: {name}: it is no function of the row"):
        parser.require_expression("labels.y", around.format(call), COLUMNS)


def test_a_column_may_have_the_name_of_a_clock(parser: SqlText) -> None:
    parser.require_expression("labels.y", "current_date + 1", ["Current_Date"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("int", "INTEGER"),
        ("DECIMAL(3, 1)", "DECIMAL(3,1)"),
        ("float -- single", "FLOAT"),
        ("struct(a int)[]", "STRUCT(a INTEGER)[]"),
    ],
)
def test_types_have_one_name(parser: SqlText, text: str, name: str) -> None:
    assert parser.type_name("format.types.a", text) == name


@pytest.mark.parametrize(
    "text",
    [
        *("BIGINT) + (1", "BIGINT), (1", "BIGINT)--", "BIGINT) IS NULL OR (1", "nothing", ""),
        *("bigint::varchar", "INT)::VARCHAR || (SELECT content FROM read_text('x')"),
    ],
)
def test_what_is_no_type_is_refused(parser: SqlText, text: str) -> None:
    with pytest.raises(UserError, match=r"^format\.types\.a: .* is no type"):
        parser.type_name("format.types.a", text)


def test_the_working_database_reaches_its_files_alone(tmp_path: Path) -> None:
    """Even what passes the parser: the second of two locks."""
    secret, raw = tmp_path / "secret.txt", tmp_path / "we[i]rd*'s, x.csv"
    secret.write_text("SECRET")
    raw.write_text("a\n1\n")
    out, work = tmp_path / "made" / "prepared", tmp_path / "made" / "work"
    out.mkdir(parents=True)
    work.mkdir()
    with working_database(work, Resources(memory_gib=0.6, threads=1)) as database:
        database.lock([raw], [out])
        execute = database.connection.execute
        for query in (
            f"FROM read_text('{secret}')",
            f"COPY (SELECT 1) TO '{tmp_path / 'written.csv'}'",
            f"ATTACH '{tmp_path / 'other.duckdb'}'",
            "INSTALL httpfs",
            "LOAD httpfs",
            "FROM read_text('http://127.0.0.1:9/x')",
            "SET enable_external_access = true",
            "RESET lock_configuration",
        ):
            with pytest.raises(duckdb.Error, match=r"disabled|locked|[Cc]annot|Loading|httpfs"):
                execute(query)
        escaped = str(raw).replace("'", "''").replace("[", "[[]").replace("*", "[*]")
        assert execute(f"SELECT count(*) FROM read_csv('{escaped}')").fetchone() == (1,)
        execute(f"COPY (SELECT 1 AS a) TO '{out / 'part.parquet'}' (FORMAT parquet)")
        # It still spills, and keeps what it has done.
        execute("CREATE TABLE t AS SELECT range AS i, md5(range::VARCHAR) AS m FROM range(2000000)")
        assert execute("SELECT count(*) FROM (SELECT * FROM t ORDER BY m)").fetchone()
        assert StageLog(database.connection).results == {}
    assert pq.read_table(out / "part.parquet").to_pylist() == [{"a": 1}]
    assert files_under(tmp_path) == {"secret.txt", raw.name, "made"}


HOSTILE = 'it\'s; "DROP" -- TABLE $$ [x]* {0}'


def test_names_and_values_of_any_kind_are_data(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE
    folder.mkdir()
    rows = [[HOSTILE, "y'); --"], *([k % 3, k % 2] for k in range(20)), ["N'A", "N'A"]]
    source = write_text(folder / f"{HOSTILE}.csv", rows, delimiter="'|'")
    described = describe(
        "{features: [], labels: {}, split: {}}",
        format={"delimiter": "'|'", "quote": None, "null_strings": ["N'A", "'"]},
        features=[
            {"name": "f", "column": HOSTILE},
            {"name": "b", "kind": "bag", "separator": "'; --", "expression": "'1''; --2'"},
        ],
        labels={"click": "y'); --"},
        split={"by": "random", "shares": [1, 0, 0]},
        min_count=1,
    )
    prepare_files([source], described, folder / "out")
    read = rows_of(folder / "out", "train")
    assert len(read) == 21
    assert sorted({row["f"] for row in read}) == [0, 1, 2, 3]
    assert all(sorted(row["b"]) == [1, 2] for row in read)
    assert sum(row["click"] or 0 for row in read) == 10


@pytest.mark.parametrize(
    "label",
    [
        "1=1) IS NOT NULL; COPY (SELECT 'x') TO '{}/written.csv'; SELECT (1",
        "(SELECT count(*) FROM read_text('{}/secret.txt')) > 0",
        "length(read_text('{}/secret.txt')) > 0",
    ],
)
def test_a_description_neither_writes_nor_reads_files(tmp_path: Path, label: str) -> None:
    (tmp_path / "secret.txt").write_text("SECRET")
    source = write_text(tmp_path / "raw.csv", [["user", "rating"], [1, 2], [2, 5]])
    described = describe(
        "{features: [{name: user}], labels: {}, split: {by: random}}",
        labels={"like": label.format(tmp_path)},
    )
    with pytest.raises(UserError, match=r"^labels\.like: "):
        prepare_files([source], described, tmp_path / "out")
    assert files_under(tmp_path) == {"secret.txt", "raw.csv"}
