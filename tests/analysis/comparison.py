"""A planned run and records of one, for tests."""

import json
from pathlib import Path
from typing import Any

from stem_torchrec.analysis.compare.plan import Combination, PlannedRun
from stem_torchrec.checkpoint.manifest import Manifest, write_manifest
from stem_torchrec.config import Config
from stem_torchrec.config.reading import dump_config

TRAIN = {"kind": "train", "step": 3, "qps_total": 100.0, "peak_memory_bytes": 1000}


def of_test_split(**auc: float) -> dict[str, Any]:
    """An eval record of the test split with these AUCs."""
    return {
        "kind": "eval",
        "split": "test",
        "step": 3,
        "logloss": {task: 1 - value for task, value in auc.items()},
        "ne": {task: 2 - value for task, value in auc.items()},
        "auc": dict(auc),
        "auc_mean": sum(auc.values()) / len(auc),
    }


def planned(folder: Path, seed: int = 0, **model: object) -> PlannedRun:
    content = {
        "run": {"dir": folder / "runs" / f"seed{seed}", "seed": seed},
        "data": {"path": folder / "data"},
        "model": model,
        "train": {"epochs": 1, "batch_size": 4096},
    }
    return PlannedRun(Combination("stem_net", "equal"), Config.model_validate(content), [])


def write_run(run: PlannedRun, *records: dict[str, Any], config: Config | None = None) -> None:
    """The folder that a run leaves, with the checkpoint that its test record is of."""
    run.dir.mkdir(parents=True, exist_ok=True)
    text = dump_config(config or run.config, {"torch": "0"})
    (run.dir / "config.yaml").write_text(text)
    lines = [json.dumps(record) + "\n" for record in records]
    (run.dir / "metrics.jsonl").write_text("".join(lines))
    for record in records:
        if record.get("split") == "test":
            write_checkpoint(run.dir, record["step"])


def write_checkpoint(run_dir: Path, step: int) -> None:
    folder = run_dir / "checkpoints" / f"step_{step}"
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, Manifest({"step": step}, ()))
