"""A task without a label in a split says so, and has no NaN for a metric."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.cli import main
from stem_torchrec.data.schema import load_schema
from tests.support.prepared import small_config, small_data


def without_labels(folder: Path, column: str) -> None:
    files = [file for split in ("train", "valid", "test") for file in (folder / split).glob("*")]
    for file in files:
        table = pq.read_table(file)
        index = table.schema.get_field_index(column)
        nulls = pa.nulls(table.num_rows, table.schema.field(index).type)
        pq.write_table(table.set_column(index, table.schema.field(index), nulls), file)


def test_a_split_without_labels_of_a_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = small_data(tmp_path / "data")
    column = load_schema(data).tasks[1].label_column
    without_labels(data, column)
    config = small_config(tmp_path / "config.yaml", data, tmp_path / "run")
    assert main(["train", "--config", str(config), "--train.max_steps", "5"]) == 0
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text
    records = [json.loads(line) for line in text.splitlines()]
    assert records[0]["loss"]["like"] is records[0]["ne"]["like"] is None
    assert records[0]["loss"]["click"] > 0
    for record in records[1:]:
        assert record["auc"]["like"] is record["logloss"]["like"] is None
    note = "task 'like' has no label, so no metric of it is defined"
    output = capsys.readouterr().err
    assert f"note: valid: {note}" in output
    assert f"note: test: {note}" in output
