"""A flipped bit that leaves a value in its range: told by the checksum of its page."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.check import check_folder
from stem_torchrec.prepare.engine.vocabulary import copy_to
from stem_torchrec.prepare.synthetic.prepare import SyntheticConfig, prepare_synthetic
from stem_torchrec.prepare.tables.prepare_files import prepare_files
from tests.prepare.raw_tables import describe, files_under, write_text

SCHEMA = Schema(
    features=(Feature(name="user", kind="id", num_embeddings=1000),), tasks=(Task(name="click"),)
)
ROWS = 500


def write(folder: Path, *, checksums: bool) -> Path:
    """A split whose ids are stored as they are, so that a bit of one is a bit of the file."""
    (folder / "train").mkdir(parents=True)
    SCHEMA.save(folder)
    users = pa.array(range(ROWS), pa.int32())
    table = pa.table({"user": users, "click": pa.array([k % 2 for k in range(ROWS)], pa.int8())})
    file = folder / "train" / "part.parquet"
    settings = {"use_dictionary": False, "compression": "none"}
    pq.write_table(table, file, write_page_checksum=checksums, write_statistics=False, **settings)
    return file


def flip(file: Path, column: str) -> None:
    """Flip a low bit in the column's last data page."""
    content, chunk = bytearray(file.read_bytes()), pq.read_metadata(file).row_group(0)
    index = [chunk.column(k).path_in_schema for k in range(chunk.num_columns)].index(column)
    found = chunk.column(index)
    end = (found.dictionary_page_offset or found.data_page_offset) + found.total_compressed_size
    content[end - 4] ^= 1
    file.write_bytes(content)


def read_users(folder: Path, *, verify: bool = True) -> list[int]:
    reader = ParquetReader(folder, "train", SCHEMA, batch_size=ROWS, verify_checksums=verify)
    return [int(k) for batch in reader.epoch(0) for k in batch.sparse.values()]


def test_a_flipped_bit_ends_the_reading_and_is_a_fault_of_the_folder(tmp_path: Path) -> None:
    file = write(tmp_path / "data", checksums=True)
    assert read_users(tmp_path / "data") == list(range(ROWS))
    flip(file, "user")
    with pytest.raises(UserError, match=r"part\.parquet, row group 0: cannot be read .*CRC"):
        read_users(tmp_path / "data")
    [fault] = check_folder(tmp_path / "data").faults
    assert "part.parquet, row group 0, column 'user': cannot be read" in fault
    # Every id is still in its range: without the checksum nobody would know.
    assert len(set(read_users(tmp_path / "data", verify=False)) - set(range(ROWS))) <= 1
    assert read_users(tmp_path / "data", verify=False) != list(range(ROWS))


def test_files_without_checksums_are_read_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "data", checksums=False)
    assert read_users(tmp_path / "data") == list(range(ROWS))
    assert check_folder(tmp_path / "data").faults == []


def test_every_prepared_file_has_checksums(tmp_path: Path) -> None:
    rows = [["user", "rating"], *([k % 9, k % 2] for k in range(300))]
    described = describe(
        "{features: [{name: user}], labels: {like: rating}, split: {by: random}, min_count: 1}"
    )
    prepare_files([write_text(tmp_path / "raw.csv", rows)], described, tmp_path / "csv")
    config = SyntheticConfig(
        train_rows=99, valid_rows=9, test_rows=9, num_users=9, num_items=9, feature_size=9
    )
    prepare_synthetic(config, tmp_path / "synthetic")
    files = sorted(tmp_path.glob("*/*/*.parquet"))
    assert {file.parent.name for file in files} == {"train", "valid", "test", "vocab", "truth"}
    for file in files:
        name = pq.read_schema(file).names[0]
        flip(file, name)
        with (
            pytest.raises(OSError, match="CRC"),
            pq.ParquetFile(file, page_checksum_verification=True) as opened,
        ):
            opened.read(columns=[name])


@pytest.mark.parametrize("rows", [1, 4, 5, 12])
def test_row_groups_have_the_rows_asked_for(tmp_path: Path, rows: int) -> None:
    with duckdb.connect() as connection:
        query = "SELECT range AS n, [range] AS list FROM range(12)"
        copy_to(connection, query, tmp_path / "a.parquet", row_group_rows=rows)
        copy_to(connection, "SELECT 1 AS n LIMIT 0", tmp_path / "empty.parquet")
    footer = pq.read_metadata(tmp_path / "a.parquet")
    sizes = [footer.row_group(k).num_rows for k in range(footer.num_row_groups)]
    assert sizes == [rows] * (12 // rows) + [12 % rows] * (12 % rows > 0)
    assert pq.read_table(tmp_path / "a.parquet")["n"].to_pylist() == list(range(12))
    assert pq.read_metadata(tmp_path / "empty.parquet").num_rows == 0
    assert files_under(tmp_path) == {"a.parquet", "empty.parquet"}
