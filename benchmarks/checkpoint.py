"""What a checkpoint costs a run: the stall of a save, in the background or not, and a resume.

    python benchmarks/checkpoint.py --json FILE [--gib 1] [--repeats 3] [--nproc 1] [--dir DIR]

Saves alternate: one that training waits for, one in the background. ``stall_s`` is the time in
``Saver.save``, the median over the repeats (the first save in the background, which takes the
memory of the copy, stands apart); ``done_s`` is the time until the checkpoint stands under its
name. ``check_s`` reads every byte against the checksums, ``load_s`` fills the tables. Sizes and
times are those of all ranks together, the ranks on one disk; its cache is warm for the resume.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from provenance import provenance

GIB = 1 << 30
DIM = 16
OWNERS = 2
FEATURES = 2


def main() -> None:
    from stem_torchrec.launch.launcher import run_workers

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--gib", type=float, default=1.0, help="size of the tables")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--dir", type=Path, help="where to write; a temporary folder if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        row = run_workers(options.nproc, measured, Path(folder), options.gib, options.repeats)
    for name, value in row.items():
        print(f"{name:>24}  {value:.3f}" if isinstance(value, float) else f"{name:>24}  {value}")
    options.json.write_text(json.dumps({"rows": [row], **provenance()}, indent=1) + "\n")


def measured(folder: Path, gib: float, repeats: int) -> dict[str, Any]:
    """Save and load one model; every rank does the same. The figures are this rank's."""
    from stem_torchrec import checkpoint
    from stem_torchrec.config import DistributedConfig
    from stem_torchrec.distributed.ranks import start_ranks, stop_ranks
    from stem_torchrec.launch.notices import hide_dependency_notices
    from stem_torchrec.training.session import build

    hide_dependency_notices()
    ranks = start_ranks(DistributedConfig())
    config = ranks.on_first(lambda: prepare(folder, gib))
    session = build(config, ranks)
    savers = {kind: saver_of(folder, ranks, kind == "async") for kind in ("sync", "async")}
    stalls: dict[str, list[float]] = {"sync": [], "async": []}
    done: dict[str, list[float]] = {"sync": [], "async": []}
    for step in range(1, repeats + 2):
        for kind, saver in savers.items():
            state = checkpoint.state_of({"model": session.model})
            content = checkpoint.Content(step, state | fused(session), b"", {})
            ranks.barrier()
            start = perf_counter()
            saver.save(content)
            stalls[kind].append(perf_counter() - start)
            saver.wait()
            done[kind].append(perf_counter() - start)
    ranks.barrier()
    start = perf_counter()
    path = checkpoint.newest_valid(folder, ranks)
    check_s = perf_counter() - start
    checkpoint.load(path, {"model": session.model}, ranks)
    load_s = perf_counter() - start - check_s
    size = sum(file.stat().st_size for file in path.iterdir()) / GIB
    for saver in savers.values():
        saver.close()
    result = {
        "ranks": ranks.world_size,
        "device": ranks.device.type,
        "gib": size,
        "sync_stall_s": statistics.median(stalls["sync"][1:]),
        "async_first_stall_s": stalls["async"][0],
        "async_stall_s": statistics.median(stalls["async"][1:]),
        "sync_done_s": statistics.median(done["sync"][1:]),
        "async_done_s": statistics.median(done["async"][1:]),
        "check_s": check_s,
        "load_s": load_s,
    }
    stop_ranks()
    result["stall_ratio"] = result["async_stall_s"] / result["sync_stall_s"]
    result["first_stall_ratio"] = result["async_first_stall_s"] / result["sync_stall_s"]
    result["check_s_per_gib"] = check_s / size
    result["resume_s_per_gib"] = (check_s + load_s) / size
    return result


def fused(session: Any) -> dict[str, Any]:
    """The tables' optimizer states; dense ones do not exist before a step and are small."""
    return {"optimizers": session.optimizers.fused.state_dict()["state"]}


def prepare(folder: Path, gib: float) -> Any:
    from stem_torchrec.config.reading import validate
    from stem_torchrec.data.schema import Feature, Schema, Task

    rows = int(gib * GIB / (4 * DIM * OWNERS * FEATURES))
    features = tuple(Feature(name=f"f{i}", kind="id", num_embeddings=rows) for i in range(FEATURES))
    Schema(features=features, tasks=(Task(name="click"),)).save(folder)
    return validate(
        {
            "run": {"dir": str(folder)},
            "data": {"path": str(folder)},
            "embedding": {"dim": DIM},
            "distributed": {"sharding": "row_wise"},
        }
    )


def saver_of(folder: Path, ranks: Any, asynchronous: bool) -> Any:
    from stem_torchrec import checkpoint
    from stem_torchrec.config import CheckpointConfig

    config = CheckpointConfig(asynchronous=asynchronous, keep=1, on_error="stop")
    return checkpoint.Saver(config, folder / checkpoint.FOLDER, ranks)


if __name__ == "__main__":
    main()
