"""Raw rows encoded anew are the prepared ones, value for value and type for type."""

import json
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.encoder import encode
from stem_torchrec.prepare.encoder.definition import ENCODER_FILE
from stem_torchrec.prepare.encoder.encode import RawEncoder, load_raw_encoder
from stem_torchrec.prepare.kuairand.prepare import KuaiRandConfig, prepare_kuairand
from stem_torchrec.prepare.tables.prepare_files import prepare_files
from stem_torchrec.prepare.tables.public_sets import TIKTOK_COLUMNS, describe_tiktok
from tests.prepare.raw_tables import describe, write_text
from tests.support.kuairand_release import Source

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
DESCRIPTION = """
features:
  - {name: user, column: uid, side: user}
  - {name: last, column: last, side: user, table: user}
  - {name: item, encoding: hash, num_embeddings: 50}
  - {name: tags, kind: bag, separator: "|", pooling: mean}
  - {name: seen, kind: bag, separator: "|", encoding: identity, num_embeddings: 10}
  - {name: marks, kind: bag, separator: "|", encoding: hash, num_embeddings: 9}
  - {name: slot, encoding: identity, num_embeddings: 4}
  - {name: price, kind: dense}
  - {name: dear, expression: "price > 1"}
  - {name: hour, expression: "hour(seen_at)"}
labels: {liked: stars >= 4}
split: {by: column, column: part, train: [a], test: [b]}
min_count: 1
"""
COLUMNS = [*("uid", "last", "item", "tags", "seen", "marks", "slot", "price", "seen_at", "stars")]
ROWS = [
    ["1", "2.0", "a", "x|y|x", "3|4", "1|b", "0", "0.5", "2024-01-01 10:00:00", "5"],
    ["2.0", "x 1", "7", "", "", "", "1", "", "2024-01-01 11:30:00", "2"],
    ["3.5", "nan", "7.0", "y| z ", "0", "3", "", "nan", "2024-01-02 12:00:00", ""],
    ["", "1", "", "z", "9", "9", "2", "7", "2024-01-03 13:00:00", "4"],
]


def texts(path: Path, names: list[str], delimiter: str = ",") -> pa.Table:
    """A delimited file as texts, nothing as null."""
    options = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
    )
    read = csv.ReadOptions(column_names=names, skip_rows=1) if delimiter == "," else None
    read = read or csv.ReadOptions(column_names=names)
    parse = csv.ParseOptions(delimiter=delimiter)
    return csv.read_csv(path, read_options=read, parse_options=parse, convert_options=options)


def prepared(folder: Path, split: str) -> pa.Table:
    files = sorted((folder / split).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def assert_same(encoder: RawEncoder, raw: pa.Table, expected: pa.Table) -> None:
    found = encoder.encode(raw)
    for feature in encoder.encoder.features:
        ours, theirs = found[feature.name], expected[feature.name]
        assert ours.type == theirs.type, feature.name
        assert repr(ours.to_pylist()) == repr(theirs.to_pylist()), feature.name  # NaN is NaN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of ROWS twice: as train, and as test with values that train does not have."""
    folder = tmp_path_factory.mktemp("encoder")
    lines = [[*COLUMNS, "part"], *([*row, "a"] for row in ROWS), *([*row, "b"] for row in ROWS)]
    lines.append(["99", "1", "new", "q|x", "1", "4", "3", "-1", "2024-01-04 00:00:00", "1", "b"])
    source = write_text(folder / "raw.csv", lines)
    prepare_files([source], describe(DESCRIPTION), folder / "out")
    return folder


def test_described_files(folder: Path) -> None:
    names = [*COLUMNS, "part"]
    raw = texts(folder / "raw.csv", names)
    test = raw.filter(pa.compute.equal(raw["part"], "b")).drop_columns(["part", "stars"])
    assert_same(load_raw_encoder(folder / "out"), test, prepared(folder / "out", "test"))


def test_numbers_mean_what_their_texts_mean(folder: Path) -> None:
    encoder = load_raw_encoder(folder / "out", ["user", "item", "price", "tags"])
    assert encoder.inputs == ("uid", "item", "tags", "price")
    rows = {"uid": [1, 2.0, 3.5, None], "item": ["a", "7", "7.0", None], "tags": [None] * 4}
    found = encoder.encode(pa.table(rows | {"price": [0.5, None, float("nan"), 7]}))
    expected = prepared(folder / "out", "train")
    assert found["user"].to_pylist() == expected["user"].to_pylist()
    assert found["item"].to_pylist()[:2] == expected["item"].to_pylist()[:2]
    assert found["tags"].to_pylist() == [[]] * 4


@pytest.mark.parametrize("name", ["uid", "shop"])
@pytest.mark.parametrize(
    "values",
    [
        ["7", "", None, "8"],
        ["7", "007", "5.0", "s1"],
        ["s1", "nan", "7.0", "", "s2"],
        [7, 8, None, -1, 2**62],
        pa.array([2**63, 7], pa.uint64()),
        [7.0, 8.5, float("nan")],
    ],
)
def test_what_needs_no_sql_is_what_sql_gives(
    name: str, values: list | pa.Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [["uid", "shop", "seen", "part"], ["7", "s1", "1", "a"], ["8", "7", "0", "a"]]
    source = write_text(tmp_path / "raw.csv", [*lines, ["5", "s2", "0", "a"]])
    features = f"features: [{{name: {name}}}]\nlabels: {{seen: seen}}\nmin_count: 1\n"
    split = "split: {by: column, column: part, train: [a], test: [b]}"
    prepare_files([source], describe(features + split), tmp_path / "out")
    encoder, table = load_raw_encoder(tmp_path / "out"), pa.table({name: values})
    found = encoder.encode(table)
    monkeypatch.setattr(encode, "plain_values", lambda *_, **__: None)
    assert found.equals(encoder.encode(table))
    if "007" in values:  # a code is another value than the number
        known = load_raw_encoder(tmp_path / "out").encode(pa.table({name: ["7", "5"]}))
        seven, five = known[name].to_pylist()
        assert found[name].to_pylist()[:3] == [seven, 0, five]


def test_what_was_never_seen_is_id_0(folder: Path) -> None:
    encoder = load_raw_encoder(folder / "out", ["user", "tags"])
    rows = {"uid": ["1.5", "77", "abc", "1"], "tags": ["x|new", "", None, "1"]}
    found = encoder.encode(pa.table(rows))
    known = prepared(folder / "out", "train")
    assert found["user"].to_pylist() == [0, 0, 0, known["user"][0].as_py()]
    assert found["tags"].to_pylist() == [[known["tags"][0].as_py()[0], 0], [], [], [0]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"price": ["cheap"]}, r"row 0: column 'price': cheap is no DOUBLE"),
        ({"price": [float("inf")]}, "feature 'price': inf"),
        ({"slot": ["4"]}, r"id of 'slot': 4 is not 0 to 3"),
        ({"seen": ["1|x"]}, "id of 'seen'"),
        ({"seen_at": ["soon"]}, r"column 'seen_at': soon is no TIMESTAMP"),
        ({"seen_at": [{"a": 1}]}, "column 'seen_at'"),
        ({"tags": [["x", "y"]]}, r"column 'tags': list<.*expected single values \(VARCHAR\)"),
        ({"uid": [{"a": 1}]}, r"column 'uid': struct<a: int64>; expected single values"),
        ({"price": None}, r"column 'price' is missing; needed are uid, last"),
    ],
)
def test_wrong_values_are_named(folder: Path, changed: dict, message: str) -> None:
    encoder = load_raw_encoder(folder / "out")
    row = {name: [value] for name, value in zip(COLUMNS, ROWS[0], strict=True)} | changed
    table = pa.table({name: value for name, value in row.items() if value is not None})
    with pytest.raises(UserError, match=message):
        encoder.encode(table)


def _other_format(content: dict) -> None:
    content["format"] = 9


def _a_file(content: dict) -> None:
    content["features"][0]["sql"] = "(SELECT 1 FROM read_csv('/etc/passwd'))"


def _a_second_query(content: dict) -> None:
    content["features"][0]["fault"] = "1; COPY (SELECT 1) TO '/tmp/x'"


def _a_type(content: dict) -> None:
    content["inputs"][0]["type"] = "BIGINT) FROM (SELECT 1"


def _no_features(content: dict) -> None:
    del content["features"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_other_format, "an encoder of format 9; this version reads 1"),
        (_a_file, "is not allowed"),
        (_a_second_query, "not one expression"),
        (_a_type, "is no type"),
        (_no_features, "is no encoder"),
    ],
)
def test_a_strangers_file_is_checked(
    folder: Path, tmp_path: Path, damage: Callable[[dict], None], message: str
) -> None:
    content = json.loads((folder / "out" / ENCODER_FILE).read_text())
    damage(content)
    (tmp_path / ENCODER_FILE).write_text(json.dumps(content))
    (tmp_path / "vocab").symlink_to(folder / "out" / "vocab")
    with pytest.raises(UserError, match=message):
        load_raw_encoder(tmp_path)


def _encode_tiktok(source: Path, tmp_path: Path, min_count: int) -> None:
    prepare_files([source], describe_tiktok(min_count=min_count), tmp_path / "out")
    raw = texts(source, list(TIKTOK_COLUMNS), "\t")
    # Rows are split by chance and train is shuffled: test keeps the order of the file.
    ids = load_raw_encoder(tmp_path / "out").encode(raw)
    test = prepared(tmp_path / "out", "test")
    rows = [tuple(row.values()) for row in ids.to_pylist()]
    expected = [tuple(row.values()) for row in test.select(ids.column_names).to_pylist()]
    assert expected
    remaining = iter(rows)
    assert all(any(row == wanted for row in remaining) for wanted in expected)
    everything = [prepared(tmp_path / "out", split) for split in ("train", "valid", "test")]
    joined = pa.concat_tables(everything).select(ids.column_names)
    assert sorted(rows) == sorted(tuple(row.values()) for row in joined.to_pylist())


def test_tiktok(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = [rng.integers(-1, 9, 300) for _ in TIKTOK_COLUMNS]
    columns[6], columns[7] = columns[6] % 2, columns[7] % 2
    rows = np.stack(columns, axis=1).tolist()
    source = write_text(tmp_path / "final_track1_train.txt", rows, "\t")
    _encode_tiktok(source, tmp_path, min_count=20)


def test_tiktok_of_the_challenge(tmp_path: Path) -> None:
    source = SHARED / "tiktok" / "byterec_sample.txt"
    if not source.is_file():
        pytest.skip(f"{source} is not there")
    _encode_tiktok(source, tmp_path, min_count=2)


def _flat(folder: Path, suffix: str, dates: tuple[int, int]) -> pa.Table:
    """Test rows of a release, each with its user's and its video's columns."""

    def files(pattern: str) -> str:
        found = sorted(map(str, folder.glob(pattern)))
        return f"read_csv({found}, all_varchar = true, quote = '\"', escape = '\"')"

    # A connection of its own: others may have left a result half read in the common one.
    return (
        duckdb.connect()
        .sql(
            f"""
        SELECT log.*, users.* EXCLUDE (user_id), videos.* EXCLUDE (video_id)
        FROM {files(f"log_standard_*{suffix}.csv")} log
        LEFT JOIN (SELECT DISTINCT * FROM {files("user_features*.csv")}) users
            ON users.user_id = log.user_id
        LEFT JOIN (SELECT DISTINCT * FROM {files("video_features_basic*.csv")}) videos
            ON videos.video_id = log.video_id
        WHERE log.date::INTEGER BETWEEN {dates[0]} AND {dates[1]}
        """
        )
        .to_arrow_table()
    )


def _encode_kuairand(source: Path, out: Path, config: KuaiRandConfig, suffix: str) -> None:
    stats = prepare_kuairand(source, out, config=config)
    folder = source / "data" if (source / "data").is_dir() else source
    ids = load_raw_encoder(out).encode(_flat(folder, suffix, stats["dates"]["test"]))
    expected = prepared(out, "test").select(ids.column_names)
    assert [column.type for column in ids.columns] == [column.type for column in expected.columns]
    # Rows of one user, video and moment are in the order of their labels there.
    assert sorted(map(repr, ids.to_pylist())) == sorted(map(repr, expected.to_pylist()))


def test_kuairand(tmp_path: Path) -> None:
    source = Source(tmp_path / "KuaiRand-27K").write()
    config = KuaiRandConfig(min_count=2)
    _encode_kuairand(source, tmp_path / "out", config, "27k*")


def test_kuairand_of_the_release(tmp_path: Path) -> None:
    if not (SHARED / "kuairand").is_dir():
        pytest.skip(f"{SHARED / 'kuairand'} is not there")
    _encode_kuairand(SHARED / "kuairand", tmp_path / "out", KuaiRandConfig(min_count=2), "")
