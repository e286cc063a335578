"""Rows per second and memory of ``prepare tiktok`` on generated files in TikTok's format.

    python benchmarks/prepare.py --json FILE [--rows 5000000,20000000] [--memory-gib 2]

Each size is generated once and prepared in a process of its own, timed from its first import to its
end. Peak memory is VmHWM of that process. Where ``busy_cores`` is well below the cores there are,
other processes took the rest; rows per second of processor time then say more. Ids are drawn from
power laws over as many users, items and authors as the real set has.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import duckdb
from provenance import provenance

# Distinct values of the real set of 19.6 M rows, and the exponent of their power law.
_COLUMNS = {
    "uid": (73_974, 2.0),
    "user_city": (396, 2.0),
    "item_id": (4_122_689, 2.5),
    "author_id": (850_308, 2.5),
    "item_city": (461, 2.0),
    "channel": (5, 3.0),
    "finish": (0.38, None),
    "like": (0.02, None),
    "music_id": (89_779, 2.5),
    "device_id": (75_085, 2.0),
    "create_time": (30 * 86_400, 1.0),
    "video_duration": (60, 1.0),
}
_CHILD = """
import sys
from pathlib import Path
from stem_torchrec.cli import main
assert main(sys.argv[1:]) == 0
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
"""


def write_raw(path: Path, num_rows: int) -> None:
    """Write a file as ``final_track1_train.txt``: 12 columns, TAB, no header."""
    columns = [
        f"(random() < {size})::TINYINT AS {quoted(name)}"
        if power is None
        else f"floor({size} * random() ** {power})::BIGINT AS {quoted(name)}"
        for name, (size, power) in _COLUMNS.items()
    ]
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("SELECT setseed(0.5)")
        connection.execute(
            f"COPY (SELECT {', '.join(columns)} FROM range({num_rows})) TO '{path}' "
            "(FORMAT csv, DELIMITER '\t', HEADER false)"
        )


def quoted(name: str) -> str:
    return f'"{name}"'


def measure(num_rows: int, memory_gib: float, folder: Path) -> dict[str, Any]:
    """Generate a file, prepare it in a child, and report."""
    raw, out = folder / "final_track1_train.txt", folder / "out"
    write_raw(raw, num_rows)
    raw_bytes = raw.stat().st_size
    command = ["prepare", "tiktok", "--source", str(raw), "--out", str(out), "--overwrite"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = perf_counter()
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, *command, "--memory-gib", str(memory_gib)],
        capture_output=True,
        text=True,
    )
    seconds = perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if child.returncode:
        raise SystemExit(child.stderr)
    stats = json.loads((out / "stats.json").read_text())
    assert stats["raw_rows"] == sum(stats["samples"].values()) == num_rows
    stages = [line.rpartition(": ") for line in child.stderr.splitlines()]
    return {
        "num_rows": num_rows,
        "raw_bytes": raw_bytes,
        "prepared_bytes": sum(p.stat().st_size for p in out.rglob("*.parquet")),
        "seconds": round(seconds, 1),
        "rows_per_s": round(num_rows / seconds),
        "cpu_seconds": round(cpu_seconds, 1),
        "rows_per_cpu_s": round(num_rows / cpu_seconds),
        "busy_cores": round(cpu_seconds / seconds, 2),
        "load_average_after": os.getloadavg()[0],
        "peak_rss_bytes": int(child.stdout.split()[-1]) * 1024,
        "peak_rss_is": "VmHWM of the preparing process",
        "memory_gib_option": memory_gib,
        "stages_s": {name: float(spent.removesuffix(" s")) for name, _, spent in stages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--rows", default="5000000,20000000", help="sizes, one after the other")
    parser.add_argument("--memory-gib", type=float, default=2, help="option of prepare")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    sizes = [int(size) for size in options.rows.split(",")]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = [measure(size, options.memory_gib, Path(folder)) for size in sizes]
    for row in rows:
        row["seconds_over_first"] = round(row["seconds"] / rows[0]["seconds"], 2)
        row["rows_over_first"] = round(row["num_rows"] / rows[0]["num_rows"], 2)
    here = provenance()
    options.json.write_text(json.dumps({"rows": [{**r, **here} for r in rows]}, indent=2) + "\n")
    for row in rows:
        print(
            f"{row['num_rows']:>12,} rows {row['seconds']:>7.1f} s {row['rows_per_s']:>10,} rows/s "
            f"{row['busy_cores']:.2f} cores {row['peak_rss_bytes'] / 2**30:.2f} GiB, "
            f"{row['seconds_over_first']} × the first's time for {row['rows_over_first']} × its "
            "rows"
        )


if __name__ == "__main__":
    main()
