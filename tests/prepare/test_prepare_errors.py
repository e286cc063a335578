"""Bad raw data and descriptions: one readable message, nothing written, nothing lost in silence."""

import hashlib
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stem_torchrec.cli import main
from stem_torchrec.errors import EnvironmentFailure, UserError, WorkKept
from stem_torchrec.prepare.tables.prepare_files import PrepareOptions, prepare_files
from stem_torchrec.prepare.tables.raw import rows as raw_rows
from tests.prepare.raw_tables import describe, files_under, rows_of
from tests.support.forked import Forked

DESCRIPTION = """
features:
  - {name: user, side: user}
  - {name: slot, encoding: identity, num_embeddings: 3}
  - {name: slots, kind: bag, separator: "|", encoding: identity, num_embeddings: 3}
  - {name: price, kind: dense}
labels: {y: label}
sample_weight: weight
split: {by: time, column: day, valid_from: 8, test_from: 9}
shuffle: false
min_count: 1
"""
HEADER = "user,slot,slots,price,label,weight,day,unused"
GOOD = "7,0,0|1,1.5,0,1,{day},x"


def lines(**changed: str | bytes) -> list[bytes]:
    """A header and ten good rows; ``row4`` replaces the fourth of them."""
    made = [HEADER, *(GOOD.format(day=day) for day in range(10))]
    for name, line in changed.items():
        made[int(name.removeprefix("row"))] = line  # type: ignore[call-overload]
    return [line if isinstance(line, bytes) else line.encode() for line in made]


def write(tmp_path: Path, content: list[bytes]) -> Path:
    path = tmp_path / "raw.csv"
    path.write_bytes(b"\n".join(content) + b"\n")
    return path


BAD_ROWS: list[tuple[str | bytes, str, str]] = [
    ("7,0,0", r"raw.csv, line 5: 3 columns, expected 8; found '7,0,0'", "too few columns"),
    (
        GOOD.format(day=3) + ",1",
        "line 5: 9 columns, expected 8; found '7,0,0|1",
        "too many columns",
    ),
    (b"7,0,0,\xff\xfe,0,1,3,x", "line 5: not UTF-8", "not UTF-8"),
    ("7,0,0,1,2,1,3,x", "row 4: label 'y': 2 is not 0, 1 or missing", "label 'y'"),
    ("7,0,0,1,0.5,1,3,x", "row 4: label 'y': 0.5 is not 0, 1 or missing", "label 'y'"),
    ("7,0,0,1,0,1,d,x", "row 4: column 'day': d is no BIGINT; as in the first", "column 'day'"),
    ("7,0,0,1,0,1,3.0,x", "row 4: column 'day': 3.0 is no BIGINT", "column 'day'"),
    ("7,0,0,1,0,1,03,x", "row 4: column 'day': 03 is no BIGINT", "column 'day'"),
    ("7,0,0,1,0,1,0x3,x", "row 4: column 'day': 0x3 is no BIGINT", "column 'day'"),
    ("7,0x1,0,1,0,1,3,x", "row 4: id of 'slot': 0x1 is not 0 to 2", "id of 'slot'"),
    ("7,0,0|0_1,1,0,1,3,x", r"row 4: id of 'slots': 0\|0_1 is not 0 to 2", "id of 'slots'"),
    ("7,0,0,1_0,0,1,3,x", "row 4: feature 'price': 1_0 is not a finite number", "feature 'price'"),
    ("7,3,0,1,0,1,3,x", "row 4: id of 'slot': 3 is not 0 to 2", "id of 'slot'"),
    ("7,-1,0,1,0,1,3,x", "row 4: id of 'slot': -1 is not 0 to 2", "id of 'slot'"),
    ("7,0,0|3,1,0,1,3,x", r"row 4: id of 'slots': 0\|3 is not 0 to 2", "id of 'slots'"),
    ("7,0,a,1,0,1,3,x", "row 4: id of 'slots': a is not 0 to 2", "id of 'slots'"),
    ("7,0,1.5,1,0,1,3,x", "row 4: id of 'slots': 1.5 is not 0 to 2", "id of 'slots'"),
    ("7,0,0,inf,0,1,3,x", "row 4: feature 'price': inf is not a finite number", "feature 'price'"),
    ("7,0,0,1,0,-1,3,x", "row 4: sample_weight: -1 is not a number, 0 or more", "sample_weight"),
    ("7,0,0,1,0,,3,x", "row 4: sample_weight: nothing is not a number", "sample_weight"),
    ("7,0,0,1,0,1,,x", "row 4: time of the split: nothing is not a time", "time of the split"),
]


@pytest.fixture
def _typed_by_three_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stem_torchrec.prepare.tables.raw.files.SAMPLE_ROWS", 3)


@pytest.mark.usefixtures("_typed_by_three_rows")
@pytest.mark.parametrize(("line", "message", "reason"), BAD_ROWS)
def test_bad_row_is_named_and_leaves_nothing(
    tmp_path: Path, line: str | bytes, message: str, reason: str
) -> None:
    source = write(tmp_path, lines(row4=line))
    with pytest.raises(UserError, match=message):
        prepare_files([source], describe(DESCRIPTION), tmp_path / "sets" / "out")
    assert files_under(tmp_path / "sets") == set()


@pytest.mark.usefixtures("_typed_by_three_rows")
def test_bad_rows_that_are_skipped_are_counted_by_reason(tmp_path: Path) -> None:
    bad = [line if isinstance(line, bytes) else line.encode() for line, _, _ in BAD_ROWS]
    good = lines()
    source = write(tmp_path, [*good[:4], *bad, *good[5:]])
    options = PrepareOptions(on_bad_row="skip")
    stats = prepare_files(
        [source], describe(DESCRIPTION), tmp_path / "sets" / "out", options=options
    )
    assert stats["skipped"] == Counter(reason for _, _, reason in BAD_ROWS)
    assert stats["samples"] == {"train": 7, "valid": 1, "test": 1}
    assert stats["raw_rows"] == 9 + len(bad)
    assert files_under(tmp_path / "sets") == {"out"}


def test_the_first_bad_row_of_several_files_is_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "a.csv", tmp_path / "b.csv"
    good.write_bytes(b"\n".join(lines()))
    bad.write_bytes(b"\n".join(lines(row9="7,0,0,1,5,1,3,x", row2="7,0,0,1,4,1,3,x")))
    with pytest.raises(UserError, match=r"b.csv, row 2: label 'y': 4 is not"):
        prepare_files([tmp_path / "*.csv"], describe(DESCRIPTION), tmp_path / "out")


def test_skipped_rows_do_not_move_others_between_splits(tmp_path: Path) -> None:
    described = describe(DESCRIPTION, split={"by": "random"})
    prepare_files([write(tmp_path, lines())], described, tmp_path / "a")
    options = PrepareOptions(on_bad_row="skip")
    source = write(tmp_path, lines(row4="7,0,0,1,2,1,3,x"))
    prepare_files([source], described, tmp_path / "b", options=options)
    for split in ("train", "valid", "test"):
        assert len(rows_of(tmp_path / "a", split)) - len(rows_of(tmp_path / "b", split)) in (0, 1)


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(values)


def feature(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["features"].__setitem__(0, {"name": "user", **values})


DESCRIPTION_ERRORS: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (change(labels={"y": "labl >= 4"}), "labels.y: unknown column 'labl'; the files have user, sl"),
    (feature(column="usr"), "features.user.column: unknown column 'usr'; the files have user"),
    (feature(expression="sum(slot)"), "features.user.expression: WHERE clause cannot contain aggr"),
    (feature(expression="slot +"), "features.user.expression: syntax error"),
    (feature(expression="slot) OR (1"), "features.user.expression: "),
    (feature(expression="nofun(slot)"), "nofun does not exist"),
    (feature(kind="bag"), "features.user: separator: needed"),
    (feature(expression="[slot]"), "kind 'id', but its value is a list"),
    (feature(encoding="hash"), "num_embeddings: needed with encoding 'hash'"),
    (feature(num_embeddings=9), "num_embeddings: counted by encoding 'vocabulary'"),
    (
        feature(transform="log1p"),
        "'log1p' is one of dense features, kind is 'id'; for ids",
    ),
    (feature(kind="dense", transform="sqrt"), "features.0.transform: Input should be 'log1p', "),
    (
        feature(kind="bag", separator="|", encoding="bucket", num_embeddings=9),
        "encoding: 'bucket' is one of ids, kind is 'bag'",
    ),
    (
        feature(encoding="bucket", num_embeddings=2),
        "num_embeddings: 2 with encoding 'bucket'; ",
    ),
    (feature(table="nobody"), "user.table: unknown 'nobody'"),
    (feature(table="price"), "user.table: 'price' has no table of its own"),
    (
        feature(colum="user"),
        "features.0.colum: unknown key; did you mean features.0.column?",
    ),
    (
        change(split={"by": "time", "seed": 1}),
        "split.time.seed: unknown key",
    ),
    (change(user="nobody"), "user: unknown feature 'nobody'"),
    (change(split={"by": "chance"}), "split"),
    (change(split={"by": "random", "shares": [0.5, 0.1, 0.1]}), "their sum is 1"),
    (change(split={"by": "time", "column": "day"}), "give valid_from and test_from, or shares"),
    (change(split={"by": "time", "column": "unused", "shares": [1, 0, 0]}), "type VARCHAR; a time"),
    (
        change(split={"by": "time", "column": "day", "valid_from": "May", "test_from": 9}),
        "split.valid_from: 'May' is no BIGINT",
    ),
    (
        change(split={"by": "time", "column": "day", "valid_from": 9, "test_from": 8}),
        "split.valid_from: 9 is after 8",
    ),
    (
        change(split={"by": "time", "column": "day", "valid_from": 0, "test_from": 8}),
        "split: train is empty, valid has 8, test 2",
    ),
    (
        change(split={"by": "column", "column": "day", "train": [0, 1], "test": [2]}),
        "row 4: value of the split: 3 is not listed under train, valid or test",
    ),
    (change(format={"types": {"dya": "BIGINT"}}), "format.types: unknown column 'dya'; the files"),
    (change(format={"header": False}), "columns: needed, for there is no header"),
    (
        change(format={"columns": ["user", "day", "hour"]}),
        "raw.csv: no column 'hour' in the header",
    ),
    (change(labels={"User": "label"}), "columns: 'user' occurs twice"),
    (change(labels={"my label": "label"}), "labels: task 'my label': String should match pattern"),
    (change(labels={"shared": "label"}), "description: a task may not be named 'shared'"),
    (
        change(features=[{"name": "price", "kind": "dense"}]),
        "description: at least one id or bag feature is needed",
    ),
    (
        change(
            features=[{"name": "x__y", "column": "user"}, {"name": "y", "column": "slot"}],
            labels={"buy": "label", "buy__x": "label"},
        ),
        "description: two tables have the name 'buy__x__y'",
    ),
    (change(format={"types": {"user": "BIGINT) + (1"}}), "format.types.user: 'BIGINT) + (1' is no"),
]


@pytest.mark.parametrize(("spoil", "message"), DESCRIPTION_ERRORS)
def test_wrong_description_ends_with_exit_code_2(
    tmp_path: Path,
    spoil: Callable[[dict[str, Any]], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = yaml.safe_load(DESCRIPTION)
    spoil(content)
    file = tmp_path / "describe.yaml"
    file.write_text(yaml.safe_dump(content))
    out = tmp_path / "sets" / "out"
    command = ["prepare", "csv", "--source", str(write(tmp_path, lines())), "--describe", str(file)]
    assert main([*command, "--out", str(out)]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert files_under(out.parent) == set()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--source: no file '.*raw.csv'"),
        (b"", "raw.csv' is empty"),
        (HEADER.encode() + b"\n", "no rows in .*raw.csv"),
        (b"7,8,9\n1,2,3\n", "unknown column 'user'; the files have 7, 8, 9"),
        (b"user,slot,slot\n1,2,3\n", "column 'slot' occurs twice in the header"),
        (b"us\xffer,slot\n1,2\n", "raw.csv, line 1: not UTF-8"),
    ],
)
def test_unusable_source(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "raw.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare_files([tmp_path / "raw.csv"], describe(DESCRIPTION), tmp_path / "sets" / "out")
    assert files_under(tmp_path / "sets") == set()


def test_folders_foreign_headers_and_broken_parquet_are_refused(tmp_path: Path) -> None:
    described = describe(DESCRIPTION)
    with pytest.raises(UserError, match="is a folder without files"):
        prepare_files([tmp_path], described, tmp_path / "out")
    write(tmp_path, lines())
    (tmp_path / "raw2.csv").write_text("user,other\n1,2\n")
    with pytest.raises(UserError, match=r"raw2.csv: its columns user, other are not those of raw"):
        prepare_files([tmp_path / "raw*.csv"], described, tmp_path / "out")
    parquet = describe(DESCRIPTION, format={"type": "parquet"})
    (tmp_path / "raw.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"raw.parquet: .*magic bytes"):
        prepare_files([tmp_path / "raw.parquet"], parquet, tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "text", "raised", "message"),
    [
        (
            duckdb.IOException,
            "Could not write file: No space left on device",
            EnvironmentFailure,
            r"disk of '.*sets' is full: up to .* GiB are needed, .* GiB are free now",
        ),
        (duckdb.OutOfMemoryException, "failed to pin block", WorkKept, "memory_gib: not enough"),
        (OSError, "Out of Memory Error: failed to pin", WorkKept, "memory_gib: not enough"),
    ],
)
def test_exhausted_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    text: str,
    raised: type[Exception],
    message: str,
) -> None:
    def fail(*_: object) -> str:
        raise error(text)

    monkeypatch.setattr(raw_rows, "_tripwire", fail)
    source = write(tmp_path, lines())
    with pytest.raises(raised, match=message):
        prepare_files([source], describe(DESCRIPTION), tmp_path / "sets" / "out")
    assert files_under(tmp_path / "sets") == set()


def main_in_little_room(command: list[str]) -> int | None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))
    return main(command)


@pytest.mark.parametrize("source_kind", ["csv", "synthetic"])
def test_full_disk_is_named_and_the_partial_output_goes(tmp_path: Path, source_kind: str) -> None:
    """A limit on the size of files stands in for the disk: the system refuses the write alike."""
    rows = b"\n".join([HEADER.encode(), *(GOOD.format(day=k).encode() for k in range(200_000))])
    source, file = tmp_path / "raw.csv", tmp_path / "describe.yaml"
    source.write_bytes(rows)
    file.write_text(DESCRIPTION)
    command = ["prepare", "csv", "--source", str(source), "--describe", str(file)]
    if source_kind == "synthetic":
        command = ["prepare", "synthetic", "--train_rows", "100000"]
    log = tmp_path / "log"
    command += ["--out", str(tmp_path / "sets" / "out")]
    assert Forked.logged(log, main_in_little_room, command).wait(60) == 1, log.read_text()
    errors = log.read_text()
    assert "Traceback" not in errors
    assert "is full: up to " in errors
    assert "GiB are needed, " in errors
    assert files_under(tmp_path / "sets") == set()


def noise(k: int) -> str:
    return 3 * hashlib.sha256(str(k).encode()).hexdigest()


def compress(path: Path, codec: str, content: bytes) -> bytes:
    with pa.output_stream(str(path), compression=codec) as file:
        file.write(content)
    return path.read_bytes()


@pytest.mark.parametrize(("ending", "codec"), [("gz", "gzip"), ("zst", "zstd")])
@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
def test_damaged_compression_is_never_a_short_file(
    tmp_path: Path, ending: str, codec: str, on_bad_row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB takes a cut zstd file for a short one and does not look at gzip's checksum."""
    # The files are longer than the heads that are read before the work begins.
    for module in ("disk_need", "raw.headers"):
        monkeypatch.setattr(f"stem_torchrec.prepare.tables.{module}._HEAD_BYTES", 2**14)
    monkeypatch.setattr("stem_torchrec.prepare.tables.raw.files.SAMPLE_ROWS", 100)
    rows = [HEADER, *(GOOD.format(day=k % 10) + noise(k) for k in range(5000))]
    good, bad = tmp_path / f"a.csv.{ending}", tmp_path / f"b.csv.{ending}"
    content = compress(good, codec, "\n".join(rows).encode())
    options = PrepareOptions.model_validate({"on_bad_row": on_bad_row})
    sources, out = [good, bad], tmp_path / "sets" / "out"
    middle = len(content) // 2
    spoilt = content[:middle] + bytes(9) + content[middle + 9 :]
    damages = [content[:middle], content[:-4]]
    if codec == "gzip":  # zstd's checksum is optional
        damages.append(spoilt)
    for damaged in damages:
        bad.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"b.csv.{ending}: damaged {codec} file"):
            prepare_files(sources, describe(DESCRIPTION), out, options=options)
        assert files_under(out.parent) == set()
    bad.write_text("\n".join(rows))
    with pytest.raises(UserError, match=rf"b.csv.{ending}: cannot be read"):
        prepare_files(sources, describe(DESCRIPTION), out, options=options)
    bad.write_bytes(content)
    stats = prepare_files(sources, describe(DESCRIPTION), out, options=options)
    assert stats["raw_rows"] == 10_000


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (pa.array([0.5, 1.0]), "b.parquet: column 'label' has type double; .*a.parquet has int64"),
        (pa.array(["0", "1"]), "b.parquet: column 'label' has type string; .*a.parquet has int64"),
        (None, "b.parquet: column 'label' is missing; other files have it once"),
        (pa.array([0, 1], pa.int8()), None),
    ],
)
def test_a_parquet_column_of_another_type_in_a_later_file(
    tmp_path: Path, label: pa.Array | None, message: str | None
) -> None:
    """DuckDB would round 0.5 to the first file's integers."""
    first = {"user": [1, 2], "label": [0, 1], "unused": [1, 2]}
    pq.write_table(pa.table(first), tmp_path / "a.parquet")
    second = first | {"label": label, "unused": ["x", "y"]}
    kept = {name: values for name, values in second.items() if values is not None}
    pq.write_table(pa.table(kept), tmp_path / "b.parquet")
    described = describe(
        "{format: {type: parquet}, features: [{name: user}], labels: {y: label}, "
        "split: {by: random, shares: [1, 0, 0]}}"
    )
    if message is None:
        prepare_files([tmp_path / "*.parquet"], described, tmp_path / "out")
        return
    with pytest.raises(UserError, match=message):
        prepare_files([tmp_path / "*.parquet"], described, tmp_path / "out")
