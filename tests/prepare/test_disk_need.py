"""The estimate of disk space, from heads of files however they are compressed."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from stem_torchrec.cli import main
from stem_torchrec.prepare.tables import disk_need
from stem_torchrec.prepare.tables.disk_need import estimated_lines, needed_bytes
from stem_torchrec.prepare.tables.raw.files import open_raw_files
from stem_torchrec.prepare.tables.row_columns import row_columns
from tests.prepare.raw_tables import describe

ROWS = 40_000
DESCRIPTION = """
features: [{name: user}, {name: tags, kind: bag, separator: "|"}]
labels: {y: label}
split: {by: random}
"""


def table(tag: str = "t") -> pa.Table:
    return pa.table(
        {
            "user": [k * 7919 % 100_003 for k in range(ROWS)],
            "tags": [f"{tag}|{tag}" for _ in range(ROWS)],
            "label": [k % 2 for k in range(ROWS)],
        }
    )


def write(path: Path, tag: str = "t") -> Path:
    codec = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    if path.suffix == ".parquet":
        pq.write_table(table(tag), path)
        return path
    with pa.output_stream(str(path), compression=codec) as file:
        pa_csv.write_csv(table(tag), file, pa_csv.WriteOptions(quoting_style="none"))
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst"])
@pytest.mark.parametrize("head_bytes", [200_000, 2**22])
def test_lines_of_compressed_files(
    tmp_path: Path, name: str, head_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_need, "_HEAD_BYTES", head_bytes)
    path = write(tmp_path / name)
    # Of a compressed file as many bytes are read ahead as its buffer holds.
    tolerance = 1e-4 if head_bytes == 2**22 else 0.5 if path.suffix != ".csv" else 0.05
    assert estimated_lines([path]) == pytest.approx(ROWS, rel=tolerance)
    paths = [Path(shutil.copy(path, tmp_path / f"{k}{name}")) for k in range(20)]
    assert estimated_lines(paths) == pytest.approx(20 * ROWS, rel=tolerance)


def needed(path: Path) -> int:
    kind = "parquet" if path.suffix == ".parquet" else "delimited"
    description = describe(DESCRIPTION, format={"type": kind})
    with duckdb.connect() as connection:
        raw = open_raw_files(connection, [path], description.format)
        columns = row_columns(connection, raw, description)
        return needed_bytes(connection, raw, columns.values())


def test_kinds_of_files_need_the_same_and_long_texts_more(tmp_path: Path) -> None:
    csv = needed(write(tmp_path / "a.csv"))
    for name in ("a.csv.gz", "a.csv.zst", "a.parquet"):
        assert needed(write(tmp_path / name)) == pytest.approx(csv, rel=1e-3)
    assert csv >= ROWS * 3 * 20
    longer = needed(write(tmp_path / "long.csv", "t" * 50))
    assert longer - csv >= ROWS * 2 * 2 * 49


def test_a_small_disk_is_told_before_the_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "raw.csv")
    (tmp_path / "describe.yaml").write_text(DESCRIPTION)
    command = ["prepare", "csv", "--source", str(tmp_path / "raw.csv"), "--overwrite"]
    command += ["--describe", str(tmp_path / "describe.yaml"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "too small" not in capsys.readouterr().err
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert main(command) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert "may be too small: up to 0.00 GiB are needed for a while, 0.00 GiB are free" in first
