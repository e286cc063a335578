"""Side tables joined by a key: as one flat file, or refused with an example."""

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stem_torchrec.cli import main
from stem_torchrec.prepare.encoder.encode import load_raw_encoder
from stem_torchrec.prepare.tables.prepare_files import PrepareOptions, prepare_files
from tests.prepare.raw_tables import (
    all_rows,
    describe,
    files_under,
    rows_of,
    vocabulary,
    write_text,
)
from tests.prepare.test_encoder import assert_same, prepared, texts

MOVIELENS = Path(__file__).parents[2].parent / "shared" / "data" / "ml-latest-small"
FEATURES = """
features:
  - {name: movie}
  - {name: genres, kind: bag, separator: "|", pooling: mean}
  - {name: year, kind: dense}
  - {name: age, column: user_age, kind: dense, transform: standard}
labels: {y: y}
split: {by: random, shares: [0.6, 0.2, 0.2]}
min_count: 1
"""
ROWS = [("movie", "user", "y"), *((k % 5, f"u{k % 3}", k % 2) for k in range(400))]
MOVIES = [("movie", "genres", "year"), *((k, f"g{k}|all", 2000 + k) for k in range(6))]
USERS = [("id", "age", "y"), ("u0", 20, 1), ("u1", 30, 1), ("u2", "", 1)]


def tables(folder: Path, **changed: Any) -> dict[str, Any]:
    movies = {"source": str(folder / "movies.csv"), "on": "movie"}
    users = {"source": str(folder / "users.csv"), "on": {"user": "id"}, "prefix": "user_"}
    return {"movies": movies | changed.get("movies", {}), "users": users | changed.get("users", {})}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("rows", ROWS), ("movies", MOVIES), ("users", USERS)):
        write_text(tmp_path / f"{name}.csv", rows)
    return tmp_path


def test_as_one_flat_file(folder: Path) -> None:
    described = describe(FEATURES, tables=tables(folder))
    prepare_files([folder / "rows.csv"], described, folder / "joined")
    movies, users = {m[0]: m for m in MOVIES[1:]}, {u[0]: u for u in USERS[1:]}
    header = (*ROWS[0], "genres", "year", "user_age")
    flat = [(*row, *movies[row[0]][1:], users[row[1]][1]) for row in ROWS[1:]]
    write_text(folder / "flat.csv", [header, *flat])
    prepare_files([folder / "flat.csv"], describe(FEATURES), folder / "flat")
    assert repr(all_rows(folder / "joined")) == repr(all_rows(folder / "flat"))
    # A request has the columns of all tables in one row.
    encoder = load_raw_encoder(folder / "joined")
    assert encoder.inputs == ("movie", "genres", "year", "user_age")
    expected = prepared(folder / "joined", "test")
    ids = encoder.encode(texts(folder / "flat.csv", list(header)))
    found = [row for row in ids.to_pylist() if row in expected.select(ids.column_names).to_pylist()]
    assert len(found) >= expected.num_rows
    assert_same(encoder, texts(folder / "flat.csv", list(header)), ids)


@pytest.mark.skipif(not MOVIELENS.is_dir(), reason=f"no MovieLens in {MOVIELENS}")
def test_movielens_as_documented(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    text = page.partition("<!-- example: movielens -->\n```yaml\n")[2].partition("```")[0]
    described = describe(text.replace("ml-latest-small", str(MOVIELENS)))
    stats = prepare_files([MOVIELENS / "ratings.csv"], described, tmp_path / "out")
    with (MOVIELENS / "movies.csv").open() as lines:
        genres = {row["movieId"]: row["genres"].split("|") for row in csv.DictReader(lines)}
    with (MOVIELENS / "ratings.csv").open() as lines:
        ratings = sorted(csv.DictReader(lines), key=lambda row: int(row["timestamp"]))
    ids = vocabulary(tmp_path / "out", "genres")
    expected = [[ids.get(g, 0) for g in genres[row["movieId"]]] for row in ratings]
    found = prepared(tmp_path / "out", "train")["genres"].to_pylist()
    assert found == expected[: len(found)]
    assert stats["features"]["year"]["null_share"] < 0.001
    assert stats["features"]["item_id"]["values"] == len(
        {row["movieId"] for row in ratings[: len(found)]}
    )


def test_rows_keep_their_order(tmp_path: Path) -> None:
    """Of more rows than one thread reads at a time, from Parquet, joined to a larger table."""
    keys = [(k * 7919) % 1000 for k in range(150_000)]
    pq.write_table(pa.table({"key": keys, "n": range(150_000), "y": [0] * 150_000}), tmp_path / "r")
    pq.write_table(pa.table({"key": range(200_000), "x": range(200_000)}), tmp_path / "side")
    described = describe(
        "features: [{name: x, encoding: identity, num_embeddings: 1000}, {name: n, kind: dense}]\n"
        "labels: {y: y}\nformat: {type: parquet}\nsplit: {by: random, shares: [1, 0, 0]}\n"
        f"shuffle: false\ntables: {{s: {{source: '{tmp_path / 'side'}', on: key, "
        "format: {type: parquet}}}"
    )
    prepare_files([tmp_path / "r"], described, tmp_path / "out", options=PrepareOptions(threads=3))
    found = prepared(tmp_path / "out", "train")
    assert found["n"].to_pylist() == list(range(150_000))
    assert found["x"].to_pylist() == keys


def test_a_key_without_a_row(folder: Path) -> None:
    """Is a bad row, or one of missing values, which is counted."""
    write_text(folder / "rows.csv", [*ROWS, (99, "u0", 1), ("", "u1", 1)])
    options = PrepareOptions(on_bad_row="skip")
    described = describe(FEATURES, tables=tables(folder))
    stats = prepare_files([folder / "rows.csv"], described, folder / "a", options=options)
    assert stats["skipped"] == {"tables.movies": 2}
    allowing = tables(folder, movies={"missing": "allow"})
    stats = prepare_files(
        [folder / "rows.csv"],
        describe(FEATURES, tables=allowing, split={"by": "random", "shares": [1, 0, 0]}),
        folder / "b",
    )
    rows = [row for row in rows_of(folder / "b", "train") if row["genres"] == []]
    assert [row["year"] for row in rows] == [None, None]
    assert stats["raw_rows"] == len(ROWS) + 1
    assert stats["without"] == {"movies": {"train": 2}}


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"rows": [*ROWS, (99, "u0", 1)]}, {}, "rows.csv, row 401: tables.movies: movie 99 has no row"),
    (
        {"movies": [*MOVIES, (3, "x", 1)]},
        {},
        "tables.movies: movie 3 has 2 rows in movies.csv, so that a row with it would become 2; al",
    ),
    (
        {"movies": [MOVIES[0], *((f"m{m[0]}", *m[1:]) for m in MOVIES[1:])]},
        {},
        "tables.movies.on: 'movie' is BIGINT in rows.csv, but 'movie' is VARCHAR in movies.csv, e.g"
        ". 'm",
    ),
    ({}, {"on": "film"}, "tables.movies.on: unknown column 'film'; the files have movie, user, y"),
    ({}, {"on": {"movie": "film"}}, "on: no column 'film' in movies.csv; it has movie, genres, ye"),
    ({}, {"source": "none.csv"}, "tables.movies.source: no file 'none.csv'"),
    ({}, {"columns": ["title"]}, "columns: no column 'title' in movies.csv; it has movie, genres"),
    ({}, {"missing": "drop"}, "tables.movies.missing: Input should be 'refuse' or 'allow'"),
    (
        {},
        {"format": {"null_strings": ["NA"]}},
        "format.null_strings: ('NA',); allowed: that of ",
    ),
    (
        {"movies": [("movie", "genres", "user"), *MOVIES[1:]]},
        {},
        "tables.movies: column 'user' is one of the rows already; give prefix, e.g. movies_",
    ),
    ({"movies": [*MOVIES, (7, "g")]}, {}, "movies.csv, line 8: 2 columns, expected 3"),
]


@pytest.mark.parametrize(("files", "changed", "message"), REFUSED)
def test_refused_with_an_example(
    folder: Path,
    files: dict[str, Any],
    changed: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, rows in files.items():
        write_text(folder / f"{name}.csv", rows)
    content = yaml.safe_load(FEATURES) | {"tables": tables(folder, movies=changed)}
    described = folder / "describe.yaml"
    described.write_text(yaml.safe_dump(content).replace("'on':", "on:"))  # as people write it
    command = ["prepare", "csv", "--source", str(folder / "rows.csv")]
    command += ["--describe", str(described), "--out", str(folder / "sets" / "out")]
    assert main(command) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert files_under(folder / "sets") == set()
