"""Rows and ids per second of ``ParquetReader``, beside plain pyarrow loops over the same files.

    python benchmarks/reader.py --json FILE [--rows N] [--rounds N] [--workers N,N]

Every round runs all contestants of a case one after the other; a row of the result holds the
median over rounds, of processor time, too, which other processes disturb less. The plain loops turn
each batch's columns into numpy arrays and do nothing else: no checks, no order, no batches for a
model. ``ids_per_cpu_s`` is what one core does. Rows of ``--workers`` have one Arrow thread; one
worker reads while the consumer permutes, so it takes more than one core.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from provenance import provenance

from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import Feature, Schema, Task

BATCH_SIZE = 4096
NUM_EMBEDDINGS = 100_000
BAG_LENGTHS = {"64 bags of 10": (10, 10), "64 bags of 0 to 20": (0, 20)}
TASKS = (Task(name="click"), Task(name="like"))


def write_split(
    path: Path,
    schema: Schema,
    num_rows: int,
    row_group_size: int,
    bag_lengths: tuple[int, int] = (0, 20),
) -> int:
    """Write ``path/train`` as two files of random rows; returns the number of ids in them."""
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {}
    num_ids = 0
    for feature in schema.features:
        lengths = np.ones(num_rows, np.int32)
        if feature.kind == "bag":
            lengths = random.integers(*bag_lengths, num_rows, np.int32, endpoint=True)
        values = pa.array(random.integers(0, NUM_EMBEDDINGS, lengths.sum()))
        if feature.kind == "bag":
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            values = pa.ListArray.from_arrays(pa.array(offsets), values)
        columns[feature.name] = values
        num_ids += int(lengths.sum())
    for task in schema.tasks:
        columns[task.name] = random.integers(0, 2, num_rows).astype(np.int8)
    table = pa.table(columns)
    (path / "train").mkdir(parents=True)
    for part in range(2):
        rows = table.slice(part * (num_rows // 2), num_rows // 2)
        file = path / "train" / f"{part}.parquet"
        pq.write_table(rows, file, row_group_size=row_group_size, write_page_checksum=True)
    return num_ids


def plain_loop(path: Path, use_threads: bool) -> int:
    """Rows read by ``iter_batches``, their columns as numpy arrays."""
    num_rows = 0
    for file in sorted((path / "train").glob("*.parquet")):
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(BATCH_SIZE, use_threads=use_threads):
                for column in batch.columns:
                    values = column.values if pa.types.is_list(column.type) else column
                    values.to_numpy()
                num_rows += batch.num_rows
    return num_rows


def read_epoch(
    path: Path,
    schema: Schema,
    shuffle: bool,
    threads: int,
    verify: bool = True,
    workers: int = 1,
) -> int:
    """Rows of one epoch of the reader, with ``threads`` Arrow threads."""
    pa.set_cpu_count(threads)
    reader = ParquetReader(
        path,
        "train",
        schema,
        batch_size=BATCH_SIZE,
        shuffle=shuffle,
        verify_checksums=verify,
        workers=workers,
    )
    return sum(batch.num_samples for batch in reader.epoch(0))


def measure(
    case: str,
    schema: Schema,
    num_rows: int,
    row_group_size: int,
    rounds: int,
    workers: Sequence[int],
) -> list[dict[str, Any]]:
    """Interleaved rounds of all contestants over one data set."""
    all_threads = pa.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        bag_lengths = BAG_LENGTHS.get(case, (1, 1))
        num_ids = write_split(path, schema, num_rows, row_group_size, bag_lengths)
        contestants: dict[str, Callable[[], int]] = {
            "plain pyarrow, 1 thread": lambda: plain_loop(path, False),
            f"plain pyarrow, {all_threads} threads": lambda: plain_loop(path, True),
            "reader, file order, 1 Arrow thread": lambda: read_epoch(path, schema, False, 1),
            "reader, shuffled, 1 Arrow thread": lambda: read_epoch(path, schema, True, 1),
            "reader, shuffled, 1 Arrow thread, checksums not verified": lambda: read_epoch(
                path, schema, True, 1, verify=False
            ),
            f"reader, shuffled, {all_threads} Arrow threads": lambda: read_epoch(
                path, schema, True, all_threads
            ),
        }
        for number in workers:
            contestants[f"reader, shuffled, {number} workers"] = partial(
                read_epoch, path, schema, True, 1, workers=number
            )
        times_s: dict[str, list[float]] = {name: [] for name in contestants}
        cpu_s: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, run in contestants.items():
                pa.set_cpu_count(all_threads)
                start, cpu_start = perf_counter(), process_time()
                assert run() == num_rows
                times_s[name].append(perf_counter() - start)
                cpu_s[name].append(process_time() - cpu_start)
        pa.set_cpu_count(all_threads)
    return [
        {
            "case": case,
            "contestant": name,
            "rows_per_s": round(num_rows / median(times)),
            "ids_per_s": round(num_ids / median(times)),
            "cpu_s": round(median(cpu_s[name]), 4),
            "ids_per_cpu_s": round(num_ids / median(cpu_s[name])),
            "num_rows": num_rows,
            "row_group_size": row_group_size,
            "batch_size": BATCH_SIZE,
            "rounds": rounds,
        }
        for name, times in times_s.items()
    ]


def features(kind: str, number: int) -> Schema:
    made = (Feature(name=f"f{i}", kind=kind, num_embeddings=NUM_EMBEDDINGS) for i in range(number))
    return Schema(features=tuple(made), tasks=TASKS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--rows", type=int, default=2_097_152, help="rows of the id case")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", default="2", help="numbers of workers, N,N")
    options = parser.parse_args()
    workers = [int(number) for number in options.workers.split(",")]
    bag_rows = options.rows // 16
    rows = measure("8 ids", features("id", 8), options.rows, 131_072, options.rounds, workers)
    rows += measure(
        "64 ids", features("id", 64), options.rows // 8, 32_768, options.rounds, workers
    )
    for case in BAG_LENGTHS:
        rows += measure(case, features("bag", 64), bag_rows, 8_192, options.rounds, workers)
    here = provenance()
    result = {"rows": [{**row, **here} for row in rows]}
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        speeds = f"{row['rows_per_s']:>12,} rows/s {row['ids_per_s']:>14,} ids/s"
        print(f"{row['case']:<18} {row['contestant']:<56} {speeds}")


if __name__ == "__main__":
    main()
