"""Numbers and times as other programs write them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.encoder.encode import load_raw_encoder
from stem_torchrec.prepare.tables.prepare_files import prepare_files
from stem_torchrec.prepare.tables.raw.batches import raw_columns, raw_tables
from tests.prepare.raw_tables import all_rows, describe, files_under, write_text
from tests.prepare.test_encoder import assert_same, prepared, texts

DESCRIPTION = """
format:
  delimiter: ";"
  decimal: ","
  times: {day: "%d/%m/%Y", seen: unix}
features:
  - {name: item, column: Artikel}
  - {name: price, column: Preis, kind: dense}
  - {name: dear, expression: "Preis > 2", encoding: identity, num_embeddings: 2}
  - {name: month, expression: "month(day)", encoding: identity, num_embeddings: 13}
  - {name: hour, expression: "hour(seen)", encoding: identity, num_embeddings: 24}
labels: {y: bought}
sample_weight: weight
split: {by: time, column: seen, valid_from: 2024-01-02, test_from: 2024-01-03}
min_count: 1
"""
NAMES = ["Artikel", "Preis", "day", "seen", "bought", "weight"]
ROWS = [
    ("a", "1,5", "03/01/2024", "1704067199.5", "True", "1,5"),
    ("b", "3", "31/12/2023", "1704067200.25", "false", "1"),
    ("a", "", "", "1704153600", "", "0,5"),
    ("c", "2,25", "01/02/2024", "1.7042400e9", "FALSE", "2"),
]


def prepare(folder: Path, rows: list[tuple[str, ...]]) -> Path:
    source = write_text(folder / "raw.csv", [NAMES, *rows], ";")
    prepare_files([source], describe(DESCRIPTION), folder / "sets" / "out")
    return folder / "sets" / "out"


def test_commas_days_first_and_seconds(tmp_path: Path) -> None:
    out = prepare(tmp_path, ROWS)
    rows = all_rows(out)
    columns = ("price", "dear", "month", "hour", "y", "sample_weight")
    found = [tuple(row[c] for c in columns) for split in rows.values() for row in split]
    assert found == [
        (1.5, 0, 1, 23, 1, 1.5),
        (3.0, 1, 12, 0, 0, 1.0),
        (None, 0, 0, 0, None, 0.5),
        (2.25, 1, 2, 0, 0, 2.0),
    ]
    assert [len(rows[split]) for split in rows] == [2, 1, 1]
    raw = texts(tmp_path / "raw.csv", NAMES, ";").slice(4)
    encoder = load_raw_encoder(out)
    assert_same(encoder, raw, prepared(out, "test"))
    # Numbers of a request have no comma.
    row = {"Artikel": ["c"], "Preis": [2.25], "day": ["01/02/2024"], "seen": [1704240000.0]}
    assert_same(encoder, pa.table(row), prepared(out, "test"))


BAD = [
    (5, "1.5", "sample_weight: 1.5 is not a number, 0 or more"),
    (2, "2024-01-03", "column 'day': 2024-01-03 is no time as format.times has it, '%d/%m/%Y'"),
    (2, "31/02/2024", "column 'day': 31/02/2024 is no time"),
    (3, "soon", "column 'seen': soon is no time as format.times has it, 'unix'"),
    (3, "1e300", "column 'seen': 1e300 is no time"),
    (4, "yes", "label 'y': yes is not 0, 1 or missing"),
]


@pytest.mark.parametrize(("place", "value", "message"), BAD)
def test_what_does_not_match_is_named_with_its_row(
    place: int, value: str, message: str, tmp_path: Path
) -> None:
    row = (*ROWS[1][:place], value, *ROWS[1][place + 1 :])
    with pytest.raises(UserError, match=f"raw.csv, row 2: ({message})"):
        prepare(tmp_path, [ROWS[0], row, *ROWS[2:]])
    assert files_under(tmp_path / "sets") == set()


WRONG = [
    ({"times": {"dya": "unix"}}, "format.times.dya: no such column; the files have Artikel, Preis"),
    ({"times": {"day": "%q"}}, "format.times.day: '%q' .*; allowed: unix, unix_ms, or a layout"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG)
def test_formats_that_are_none(changed: dict, message: str, tmp_path: Path) -> None:
    source = write_text(tmp_path / "raw.csv", [NAMES, *ROWS], ";")
    described = describe(DESCRIPTION)
    raw_format = described.format.model_copy(update=changed)
    described = described.model_copy(update={"format": raw_format})
    with pytest.raises(UserError, match=message):
        prepare_files([source], described, tmp_path / "out")


def test_times_of_parquet(tmp_path: Path) -> None:
    table = {"x": ["a", "b"], "at": [1704067199.5, 1704067200.0], "day": ["1.2.2024", None]}
    pq.write_table(pa.table(table | {"y": [True, False]}), tmp_path / "raw.parquet")
    text = """
    format: {type: parquet, times: {at: unix, day: "%d.%m.%Y"}}
    features: [{name: x}, {name: month, expression: month(day), kind: dense}]
    labels: {y: y}
    split: {by: time, column: at, valid_from: 2024-01-01, test_from: 2024-01-01}
    min_count: 1
    """
    prepare_files([tmp_path / "raw.parquet"], describe(text), tmp_path / "out")
    rows = all_rows(tmp_path / "out")
    assert [row["month"] for split in rows.values() for row in split] == [2, None]
    # Rows to be encoded need no column that no feature reads.
    later = tmp_path / "later.parquet"
    pq.write_table(pa.table(table).drop_columns(["at"]), later)
    encoder = load_raw_encoder(tmp_path / "out")
    assert raw_columns(later, encoder.encoder.raw_format) == ["x", "day"]
    [raw] = raw_tables(later, encoder.encoder.raw_format, encoder.inputs, 10)
    assert encoder.encode(raw)["month"].to_pylist() == [2, None]
    spoilt = describe(text.replace("%d.%m.%Y", "%Y"))
    with pytest.raises(UserError, match=r"raw.parquet, row 1: column 'day': 1.2.2024 is no time"):
        prepare_files([tmp_path / "raw.parquet"], spoilt, tmp_path / "b")
