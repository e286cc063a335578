"""The same value is the same id, whatever its column's type and the files' format."""

import csv
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stem_torchrec.config.careful_yaml import careful_load
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.canonical_values import (
    canonical,
    forms_of,
    without_zero_fraction,
    without_zero_fraction_sql,
)
from stem_torchrec.prepare.engine.row_hash import hashed_id
from stem_torchrec.prepare.tables.prepare_files import PrepareOptions, prepare_files
from tests.prepare.raw_tables import describe, rows_of, vocabulary, write_text

DESCRIPTION = """
features:
  - {name: value}
  - {name: hashed, column: value, encoding: hash, num_embeddings: 1000003}
  - {name: many, kind: bag, expression: "[value, NULL, value]"}
labels: {y: y}
group: value
split: {by: random, shares: [1, 0, 0]}
shuffle: false
min_count: 1
"""
# An expression sees typed values; a column's own are taken as they are written.
OF_TEXTS = DESCRIPTION.replace(
    'expression: "[value, NULL, value]"', 'column: value, separator: "|"'
)
slow_machine = settings(
    max_examples=3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def prepared(
    source: Path, out: Path, text: str = DESCRIPTION, *, columns: int = 1, grouped: int = 0
) -> list[dict[str, Any]]:
    """What the vocabulary and the hash make of the columns ``value_0``, ``value_1``, ...; of the
    grouped one what the groups do, too."""
    kind = "parquet" if source.suffix == ".parquet" else "delimited"
    parts = [careful_load(of_column(text, k)) for k in range(columns)]
    described = describe(
        of_column(text, grouped),
        features=[feature for part in parts for feature in part["features"]],
        format={"type": kind},
    )
    options = PrepareOptions(threads=1)
    prepare_files([source], described, out, options=options, overwrite=True)
    rows = rows_of(out, "train")
    found = [
        {name: [row[f"{name}_{k}"] for row in rows] for name in ("value", "hashed")}
        | {"vocabulary": vocabulary(out, f"value_{k}")}
        for k in range(columns)
    ]
    found[grouped]["group"] = [row["group"] for row in rows]
    return found


def of_column(text: str, number: int) -> str:
    """The description, of ``value_N`` where it says ``value``."""
    for word in ("value", "hashed", "many"):
        text = text.replace(word, f"{word}_{number}")
    return text


def write_csv(path: Path, *columns: list[Any]) -> Path:
    names = [f"value_{k}" for k in range(len(columns))]
    with path.open("w", newline="") as file:
        rows = [
            [*("" if v is None else v for v in values), k % 2]
            for k, values in enumerate(zip(*columns, strict=True))
        ]
        csv.writer(file, quoting=csv.QUOTE_MINIMAL).writerows([[*names, "y"], *rows])
    return path


def write_parquet(path: Path, *columns: pa.Array) -> Path:
    named = {f"value_{k}": column for k, column in enumerate(columns)}
    pq.write_table(pa.table(named | {"y": [k % 2 for k in range(len(columns[0]))]}), path)
    return path


SMALL = st.lists(st.none() | st.integers(-128, 127), min_size=2, max_size=12)


@slow_machine
@given(
    values=SMALL.filter(lambda values: any(v is not None for v in values)),
    grouped=st.integers(0, 6),
)
def test_integers_of_any_type_and_format(
    tmp_path: Path, values: list[int | None], grouped: int
) -> None:
    out, path = tmp_path / "out", tmp_path / "raw.parquet"
    floats = [None if v is None else float(v) for v in values]
    expected, of_floats = prepared(write_csv(tmp_path / "raw.csv", values, floats), out, columns=2)
    assert expected["hashed"] == [hashed_id(v, 1_000_003) for v in values]
    assert expected.pop("group") == values
    assert set(expected["vocabulary"]) == {v for v in values if v is not None}
    assert of_floats == expected
    types = [pa.int8(), pa.int64(), pa.float32(), pa.float64(), pa.decimal128(21, 2), pa.string()]
    arrays = [pa.array(values, pa.int64()).cast(t) for t in types]
    texts = pa.array([None if v is None else str(v) for v in values])
    arrays.append(texts.dictionary_encode())
    arrays.append(pa.array([float("nan") if v is None else v for v in values], pa.float64()))
    if all(v is None or v >= 0 for v in values):
        arrays.append(pa.array(values, pa.uint64()))
    source = write_parquet(path, *arrays)
    found = prepared(source, out, columns=len(arrays), grouped=grouped)
    assert found[grouped].pop("group") == values, arrays[grouped].type
    for array, of_array in zip(arrays, found, strict=True):
        assert of_array == expected, array.type


TRICKY = [
    *("7", "007", "+7", "7.0", "7.00", "-0", "0", "0x1F", "31", "0b11", "3", "1_23", "123"),
    *("12e3", "12000", "1.1", "1.10", "1.5", "x", "18446744073709551600", "9223372036854775808"),
    *("6812345678901234567", "6812345678901234568", "-9223372036854775808", "2024-01-01"),
    *("2024-01-01 00:00:00", "true", "1e22", "1e+22", " 7", "inf"),
]


def is_number(text: str) -> bool:
    """An integer, plain or as a float is written, or the shortest form of a float."""
    if isinstance(canonical(without_zero_fraction(text)), int):
        return True
    try:
        return abs(float(text)) <= 2**53 and repr(float(text)) == text
    except ValueError:
        return False


SEVERAL_COLUMNS = st.integers(2, 8).flatmap(
    lambda size: st.lists(
        st.lists(st.sampled_from(TRICKY), min_size=size, max_size=size, unique=True),
        min_size=4,
        max_size=4,
    )
)


@settings(slow_machine, max_examples=4)
@given(columns=SEVERAL_COLUMNS)
def test_texts_of_delimited_files_neither_merge_nor_split(
    tmp_path: Path, columns: list[list[str]]
) -> None:
    columns = [texts * 2 for texts in columns]
    source = write_csv(tmp_path / "raw.csv", *columns)
    found = prepared(source, tmp_path / "out", OF_TEXTS, columns=4)
    for rows, of_rows in zip(columns, found, strict=True):
        read = [without_zero_fraction(t) for t in rows] if all(map(is_number, rows)) else rows
        values = [canonical(text) for text in read]
        is_integer = all(isinstance(value, int) for value in values)
        expected = {value if is_integer else str(value) for value in values}
        assert set(of_rows["vocabulary"]) == expected
        assert of_rows["hashed"] == [hashed_id(value, 1_000_003) for value in values]
        assert len(set(of_rows.get("group", values))) == len(set(values))
    # The same texts in Parquet are texts as they are.
    path = write_parquet(tmp_path / "raw.parquet", *map(pa.array, columns))
    found = prepared(path, tmp_path / "out", OF_TEXTS, columns=4, grouped=1)
    for rows, of_rows in zip(columns, found, strict=True):
        assert of_rows["hashed"] == [hashed_id(text, 1_000_003) for text in rows]
        assert len(set(of_rows.get("group", rows))) == len(of_rows["vocabulary"]) == len(set(rows))


LATE = ["007", "0x1F", "1_23", "x", "1.5", "18446744073709551615"]


@pytest.mark.parametrize(
    ("late", "on_bad_row"), [*((late, "fail") for late in LATE), ("007", "skip"), ("1.5", "skip")]
)
def test_one_late_value_decides_for_the_whole_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str, on_bad_row: str
) -> None:
    monkeypatch.setattr("stem_torchrec.prepare.tables.raw.files.SAMPLE_ROWS", 3)
    rows = [["value", "y"], *([k % 4 + 7, k % 2] for k in range(40)), ["1", "2", "3"], [late, 1]]
    source = write_text(
        tmp_path / "raw.csv", rows if on_bad_row == "skip" else rows[:-2] + rows[-1:]
    )
    options = PrepareOptions.model_validate({"on_bad_row": on_bad_row})
    stats = prepare_files([source], describe(OF_TEXTS), tmp_path / "out", options=options)
    # Ten rows each, in the order of texts, then the late one.
    expected = {text: k + 1 for k, text in enumerate(["10", "7", "8", "9", late])}
    assert vocabulary(tmp_path / "out", "value") == expected
    assert stats["skipped"] == ({"too many columns": 1} if on_bad_row == "skip" else {})
    rows_read = rows_of(tmp_path / "out", "train")
    assert [row["many"] for row in rows_read] == [[row["value"]] for row in rows_read]
    assert [row["hashed"] for row in rows_read][:2] == [hashed_id(v, 1_000_003) for v in (7, 8)]


def test_a_table_shared_by_integers_floats_and_texts(tmp_path: Path) -> None:
    table = {
        "item": pa.array([1, 2, 3, 3]),
        "before": pa.array([3.0, float("nan"), 1.0, 1.0]),
        "past": pa.array(["1|2", "3| 1", None, "2.0"]),
        "lists": pa.array([[1.0, None], [float("nan")], [], [2.5]], pa.list_(pa.float64())),
        "y": [0, 1, 0, 1],
    }
    pq.write_table(pa.table(table), tmp_path / "raw.parquet")
    described = describe(
        """
        format: {type: parquet}
        features:
          - {name: item}
          - {name: before, table: item}
          - {name: past, kind: bag, separator: "|", table: item}
          - {name: lists, kind: bag, table: item}
        labels: {y: y}
        split: {by: random, shares: [1, 0, 0]}
        shuffle: false
        min_count: 1
        """
    )
    prepare_files([tmp_path / "raw.parquet"], described, tmp_path / "out")
    ids = vocabulary(tmp_path / "out", "item")
    assert set(ids) == {"1", "2", "3", "2.0", "2.5"}  # "2.0" is a text of a Parquet file
    assert [(r["before"], r["past"], r["lists"]) for r in rows_of(tmp_path / "out", "train")] == [
        (ids["3"], [ids["1"], ids["2"]], [ids["1"], 0]),
        (0, [ids["3"], ids["1"]], [0]),
        (ids["1"], [], []),
        (ids["1"], [ids["2.0"]], [ids["2.5"]]),
    ]


@pytest.mark.parametrize("value", [float("inf"), 2.0**53 + 2])
def test_floats_that_have_lost_digits_are_refused(tmp_path: Path, value: float) -> None:
    path = write_parquet(tmp_path / "raw.parquet", pa.array([1.0, value]))
    with pytest.raises(UserError, match=r"row 2: id of 'value_0': .* a float holds exactly"):
        prepared(path, tmp_path / "out")
    with pytest.raises(ValueError, match="lost digits"):
        canonical(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "true"),
        (-0.0, 0),
        (0.1, "0.1"),
        (Decimal("5.00"), 5),
        (Decimal("1.50"), "1.5"),
        (2**63, str(2**63)),
        ("-0", "-0"),
        ("5.0", "5.0"),
        (float("nan"), None),
    ],
)
def test_canonical(value: Any, expected: Any) -> None:
    assert canonical(value) == expected
    assert type(canonical(value)) is type(expected)


@settings(deadline=None)
@given(text=st.sampled_from(TRICKY) | st.text("0123456789.-", max_size=6))
def test_sql_and_python_agree_about_texts(text: str) -> None:
    integer, whole, _, _ = forms_of("VARCHAR", is_unstated=True)
    assert integer.misfit is not None
    assert whole.misfit is not None
    stripped = without_zero_fraction(text)
    found = duckdb.execute(
        f"SELECT {integer.misfit('x')}, {whole.misfit('x')}, {without_zero_fraction_sql('x')} "
        "FROM (SELECT ? AS x)",
        [text],
    ).fetchone()
    is_whole = isinstance(canonical(stripped), int) or text == "-0.0"
    assert found == (not isinstance(canonical(text), int), not is_whole, stripped)
