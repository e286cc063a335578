"""What the reader costs a training process: resident memory, and waiting for data.

    python benchmarks/reader_in_training.py --json FILE [--rows N] [--steps N]

Every row of the result is measured in a process of its own. The memory rows read one epoch,
shuffled, of 8 ids (N and 4 N rows) and of 64 bags (N / 16 rows): ``start_rss_bytes`` is what
Python, torch and the open reader take, ``peak_rss_bytes`` the largest resident set while reading.
The waiting rows train STEM-Net on the TikTok-shaped workload of ``throughput.py``:
``waiting_share`` is the time spent in ``next(batches)`` over the time of all steps, within an
epoch.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from provenance import provenance

BATCH_SIZE = 4096
WARM_UP_STEPS = 10


class Case(NamedTuple):
    name: str
    kind: str
    num_features: int
    num_rows: int
    row_group_size: int


def memory(folder: Path, case: Case) -> dict[str, Any]:
    """Resident memory of a process that reads an epoch of the case's files in ``folder``."""
    from contestants import peak_rss_bytes
    from reader import features

    from stem_torchrec.data.reader import ParquetReader

    schema = features(case.kind, case.num_features)
    reader = ParquetReader(folder, "train", schema, batch_size=BATCH_SIZE, shuffle=True)
    start = peak_rss_bytes()
    read = sum(batch.num_samples for batch in reader.epoch(0))
    assert read == case.num_rows
    return {
        "case": f"{case.name}, shuffled",
        "num_rows": case.num_rows,
        "row_group_size": case.row_group_size,
        "batch_size": BATCH_SIZE,
        "start_rss_bytes": start,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def write(folder: Path, case: Case) -> None:
    from reader import features, write_split

    schema = features(case.kind, case.num_features)
    write_split(folder, schema, case.num_rows, case.row_group_size)


class Timed:
    """An iterator that adds up the time its consumer waits."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self.seconds = 0.0

    def __iter__(self) -> "Timed":
        return self

    def __next__(self) -> Any:
        start = perf_counter()
        item = next(self._source)
        self.seconds += perf_counter() - start
        return item


def waiting(folder: Path, num_steps: int, prefetch: int) -> dict[str, Any]:
    """Share of the steps' time that the trainer's loop body waits for batches."""
    import warnings

    warnings.simplefilter("ignore")
    from workload import Workload

    from stem_torchrec.distributed.ranks import start_ranks
    from stem_torchrec.training.session import build, open_split

    workload = Workload(folder)
    config = workload.config({"data": {"path": folder, "prefetch_batches": prefetch}})
    session = build(config, start_ranks(config.distributed))
    reader = open_split(session, "train")
    batches = Timed(batch for epoch in count() for batch in reader.epoch(epoch))
    session.recommender.train()

    def run(steps: int) -> tuple[float, float]:
        start, waited = perf_counter(), batches.seconds
        for _ in range(steps):
            session.optimizers.set_learning_rates(1.0)
            session.step(batches)
        return perf_counter() - start, batches.seconds - waited

    run(WARM_UP_STEPS)
    seconds, waited = run(num_steps)
    return {
        "case": "STEM-Net, TikTok shape, CPU",
        "prefetch_batches": prefetch,
        "batch_size": config.train.batch_rows,
        "steps": num_steps,
        "step_s": round(seconds / num_steps, 5),
        "waiting_share": round(waited / seconds, 6),
    }


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--rows", type=int, default=2_097_152, help="rows of the smaller case")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of training")
    options = parser.parse_args()
    rows = []
    for case in (
        Case("8 ids", "id", 8, options.rows, 131_072),
        Case("8 ids", "id", 8, 4 * options.rows, 131_072),
        Case("64 bags of 0 to 20", "bag", 64, options.rows // 16, 8_192),
    ):
        with tempfile.TemporaryDirectory() as folder:
            in_own_process(write, Path(folder), case)
            rows.append(in_own_process(memory, Path(folder), case))
    with tempfile.TemporaryDirectory() as folder:
        in_own_process(prepare, Path(folder) / "data", (options.steps + 20) * BATCH_SIZE)
        rows.append(in_own_process(waiting, Path(folder) / "data", options.steps, 2))
    here = provenance()
    result = {"rows": [{**row, **here} for row in rows]}
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(row)


def prepare(folder: Path, num_rows: int) -> None:
    from workload import Workload

    Workload(folder).prepare(num_rows)


if __name__ == "__main__":
    main()
