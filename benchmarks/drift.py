"""What it is worth to go on day after day, where preferences drift: test AUC of the day that comes.

Three ways to predict day d of the generated world ``drift``, over seeds of data and weights:

- ``continued``: one model that goes through the days, ``stem-torchrec replay``.
- ``last day N passes``: a new model, trained N times on day d - 1 alone.
- ``stale N days``: the model that ``continued`` had after N days, and never trained again.

    python benchmarks/drift.py --out runs/drift --json benchmarks/results/drift.json

Goes on where it was interrupted: what OUT holds is not made again.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from provenance import provenance

import stem_torchrec as st
from stem_torchrec.cli import main as command
from stem_torchrec.prepare.synthetic.prepare import SyntheticConfig, prepare_synthetic

DAYS = [f"2024-01-0{day}" for day in range(1, 8)]
PASSES = (1, 4)
STALE_DAYS = (1, 3)
WORLD = SyntheticConfig(
    world="drift",
    days=len(DAYS),
    valid_rows=1_000,
    test_rows=1_000,
    num_users=500,
    num_items=300,
)
MODEL: dict[str, Any] = {
    "model": {
        "name": "stem_net",
        "expert_widths": [64, 32],
        "gate_widths": [32],
        "tower_widths": [32],
    },
    "embedding": {"dim": 16, "lr": 0.1, "init_std": 0.1, "weight_decay": 0.03},
    "optim": {"lr": 0.002},
    "train": {"batch_size": 256, "log_every": 1_000},
}

Row = dict[str, Any]
"""``arm``, ``seed``, ``day`` and the day's ``auc_mean`` and mean ``ne`` over tasks."""


def row(arm: str, seed: int, day: str, record: Row) -> Row:
    return {
        "arm": arm,
        "seed": seed,
        "day": day,
        "auc_mean": record["auc_mean"],
        "ne_mean": mean(record["ne"].values()),
    }


def replayed(folder: Path, seed: int) -> list[Row]:
    """``continued`` and ``stale``: one replay that is judged on all days to come."""
    config, run_dir = folder / "replay.json", folder / "replay"
    sections = {"run": {"dir": str(run_dir), "seed": seed}, "data": {"path": str(folder / "data")}}
    config.write_text(json.dumps(MODEL | sections))
    words = ["replay", "--config", str(config), "--horizon", str(len(DAYS))]
    if command([*words, "--resume" if (run_dir / "checkpoints").is_dir() else "--overwrite"]) != 0:
        raise SystemExit(f"the replay of seed {seed} failed")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    days = [record for record in map(json.loads, lines) if record["kind"] == "day"]
    rows = [row("continued", seed, record["day"], record) for record in days[1:]]
    for number in STALE_DAYS:
        frozen = days[number]
        judged = [frozen, *frozen["ahead"].values()]
        rows += [row(f"stale {number} days", seed, record["day"], record) for record in judged]
    return rows


def on_last_day(folder: Path, seed: int, passes: int) -> Iterator[Row]:
    """A new model for each day, of the day before it alone."""
    for before, day in pairwise(DAYS):
        run_dir = folder / f"last-{passes}-{before}"
        sections = {
            "run": {"dir": str(run_dir), "seed": seed},
            "data": {"path": str(folder / "data"), "days": before},
            "train": MODEL["train"] | {"epochs": passes},
            "eval": {"every": 1_000_000},
        }
        st.train(MODEL | sections, existing="overwrite")
        judged = st.load_run(run_dir, data={"days": day}).evaluate("train")
        yield row(f"last day {passes} passes", seed, day, judged)


def kept(file: Path, make: Callable[[], list[Row]]) -> list[Row]:
    """Rows of a file, which is made where it is not there."""
    if not file.exists():
        rows = make()
        file.write_text(json.dumps(rows))
    found: list[Row] = json.loads(file.read_text())
    return found


def of_seed(out: Path, seed: int, rows_per_day: int) -> list[Row]:
    folder = out / f"rows_{rows_per_day}" / f"seed{seed}"
    if not (folder / "data" / "schema.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        update = {"seed": seed, "train_rows": len(DAYS) * rows_per_day}
        prepare_synthetic(WORLD.model_copy(update=update), folder / "data")
    rows = kept(folder / "replayed.json", lambda: replayed(folder, seed))
    for passes in PASSES:
        file = folder / f"last_{passes}.json"
        rows += kept(file, lambda passes=passes: list(on_last_day(folder, seed, passes)))  # type: ignore[misc]
    return rows


def summary(rows: list[Row]) -> list[Row]:
    """Per arm the mean over its days, and over seeds; ``from_day`` makes arms comparable."""
    found = []
    for first in (DAYS[1], DAYS[3]):
        for arm in dict.fromkeys(one["arm"] for one in rows):
            of_arm = [one for one in rows if one["arm"] == arm and one["day"] >= first]
            if min(one["day"] for one in rows if one["arm"] == arm) > first:
                continue
            seeds = sorted({one["seed"] for one in of_arm})
            line: Row = {"arm": arm, "from_day": first}
            for name in ("auc_mean", "ne_mean"):
                values = [mean(o[name] for o in of_arm if o["seed"] == seed) for seed in seeds]
                line[name] = mean(values)
                line[f"{name}_std"] = stdev(values) if len(values) > 1 else None
                line[f"{name}_by_seed"] = values
            found.append(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows-per-day", type=int, nargs="+", default=[10_000, 30_000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = {
        size: [one for seed in range(options.seeds) for one in of_seed(options.out, seed, size)]
        for size in options.rows_per_day
    }
    for size, rows in sizes.items():
        for line in summary(rows):
            print(size, json.dumps(line))
    if options.json:
        result = {
            "provenance": provenance(),
            "world": WORLD.model_dump(mode="json", exclude={"train_rows", "seed"}),
            "settings": MODEL,
            "by_rows_per_day": {
                size: {"summary": summary(rows), "rows": rows} for size, rows in sizes.items()
            },
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
