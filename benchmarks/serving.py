"""What a server costs over plain torch calls of the same model: latency and rows/s per core.

    python benchmarks/serving.py --json FILE [--seconds 5] [--widths 512 512 512]

A TikTok-shaped set (8 id features, D 16, 2 tasks) is written as raw CSV, prepared, trained for a
few steps and exported. A server of one thread is asked over HTTP by one caller, in turn with plain
calls of the exported model on ids that are there already (tables and dense part, one thread, this
process): A B A B, ``--seconds`` each. Rows per core and second count processor time, of the server
and of this process; ``share_of_plain`` is the one over the other, the median of the rounds.
"""

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import torch
from provenance import provenance

NAMES = [*("user_id", "user_city", "device_id", "item_id", "author_id", "item_city", "music_id")]
NAMES += ["channel"]
VALUES = (2000, 300, 2000, 4000, 1500, 300, 800, 5)
ROWS = (1, 16, 256)
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 512, 512])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        raw = export(folder, options.widths)
        rows = measured(folder / "export", raw, options.seconds)
    for row in rows:
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    settings = {"seconds": options.seconds, "rounds": ROUNDS, "widths": options.widths}
    content = {"rows": rows, "settings": settings, **provenance()}
    options.json.write_text(json.dumps(content, indent=1) + "\n")


def export(folder: Path, widths: list[int]) -> list[dict[str, int]]:
    """Make ``folder/export``; some raw rows."""
    import stem_torchrec as st
    from stem_torchrec.cli import main as command
    from stem_torchrec.prepare.tables.describe import Description
    from stem_torchrec.prepare.tables.prepare_files import prepare_files

    rng = np.random.default_rng(0)
    columns = {name: rng.integers(0, n, 40_000) for name, n in zip(NAMES, VALUES, strict=True)}
    labels = {task: rng.integers(0, 2, 40_000) for task in ("finish", "like")}
    csv.write_csv(pa.table(columns | labels), folder / "raw.csv")
    described = {
        "features": [{"name": name} for name in NAMES],
        "labels": {task: task for task in labels},
        "split": {"by": "random"},
        "min_count": 1,
    }
    prepare_files([folder / "raw.csv"], Description.model_validate(described), folder / "data")
    st.train(
        {"run": {"dir": folder / "run"}, "data": {"path": folder / "data"}},
        model={"expert_widths": widths, "num_shared_experts": 8},
        train={"max_steps": 3, "batch_size": 512},
        distributed={"device": "cpu"},
    )
    assert command(["export", "--run", str(folder / "run"), "--out", str(folder / "export")]) == 0
    return pa.table(columns).slice(0, 4096).to_pylist()


def measured(folder: Path, raw: list[dict[str, int]], seconds: float) -> list[dict[str, float]]:
    from stem_torchrec.serving import Predictor

    predictor = Predictor(folder)
    process, port = started(folder)
    try:
        return [compared(predictor, raw, size, process.pid, port, seconds) for size in ROWS]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def started(folder: Path) -> tuple[subprocess.Popen, int]:
    """A server of one thread, and its port."""
    command = [
        sys.executable,
        "-m",
        "stem_torchrec",
        "serve",
        "--model",
        str(folder),
        "--port",
        "0",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    return process, int(line.partition("127.0.0.1:")[2].split()[0])


def compared(
    predictor: Any, raw: list[dict[str, int]], size: int, pid: int, port: int, seconds: float
) -> dict[str, float]:
    """One number of rows a request: the server and plain calls, in turn."""
    rows = raw[:size]
    inputs = predictor.encode(rows)
    body = json.dumps({"rows": rows})
    connection = http.client.HTTPConnection("127.0.0.1", port)
    asked(connection, body)
    predictor.logits(inputs)
    served, plain, times = [], [], []
    for _ in range(ROUNDS):
        before, taken, end = processor_s(pid), [], perf_counter() + seconds
        while perf_counter() < end:
            start = perf_counter()
            asked(connection, body)
            taken.append(perf_counter() - start)
        served.append(size * len(taken) / (processor_s(pid) - before))
        times += taken
        calls, before, end = 0, process_time(), perf_counter() + seconds
        while perf_counter() < end:
            predictor.logits(inputs)
            calls += 1
        plain.append(size * calls / (process_time() - before))
    shares = [a / b for a, b in zip(served, plain, strict=True)]
    return {
        "rows_a_request": size,
        "p50_ms": 1e3 * statistics.median(times),
        "p99_ms": 1e3 * float(np.quantile(times, 0.99)),
        "requests": len(times),
        "server_rows_per_core_s": statistics.median(served),
        "plain_rows_per_core_s": statistics.median(plain),
        "share_of_plain": statistics.median(shares),
    }


def asked(connection: http.client.HTTPConnection, body: str) -> None:
    connection.request("POST", "/predict", body)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, content


def processor_s(pid: int) -> float:
    """Processor time of a process so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
