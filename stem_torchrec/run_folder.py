"""A run's folder: who may write it, its resolved config and its records."""

import json
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from torch.utils.tensorboard import SummaryWriter

from stem_torchrec.config import Config
from stem_torchrec.errors import UserError
from stem_torchrec.settings import dump_config

Existing = Literal["refuse", "resume", "overwrite"]
"""What to do with a run that a folder already holds."""

PACKAGES = ("stem-torchrec", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy")
METRICS = "metrics.jsonl"
JOB = "job.json"
"""Whose run it is, where a launcher may start its workers again."""

OWN_FILES = ("config.yaml", "plan.txt", METRICS, "checkpoints", "tb", JOB)


def check_run_dir(run_dir: Path, existing: Existing) -> None:
    """Refuse a folder that holds a run, unless it is to be resumed or overwritten.

    Raises:
        UserError: it holds a run and ``existing`` is ``refuse``; or it is not a folder.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run.dir: {str(run_dir)!r} is a file, expected a folder")
    holds_run = any((run_dir / name).exists() for name in OWN_FILES)
    if holds_run and existing == "refuse":
        raise UserError(
            f"run.dir: {str(run_dir)!r} already holds a run; "
            "choose another folder, or pass --resume or --overwrite"
        )
    if existing == "resume":
        require_run("--resume", run_dir)


def require_run(option: str, run_dir: Path) -> None:
    """Raise UserError if the folder holds no run."""
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{option}: {str(run_dir)!r} holds no run (no config.yaml)")


def create_run(config: Config, plan_report: str, existing: Existing) -> None:
    """Make or empty the folder and write the resolved config and the plan."""
    run_dir = config.run.dir
    if existing == "overwrite":
        for name in OWN_FILES:
            path = run_dir / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for path in run_dir.glob("bad_batch_rank*.pt"):
            path.unlink()
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump_config(config, installed_versions()))
    (run_dir / "plan.txt").write_text(plan_report)


def installed_versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


class Recorder:
    """Appends records to ``metrics.jsonl`` and TensorBoard; on ranks but the first, nothing."""

    def __init__(self, run_dir: Path, *, active: bool) -> None:
        if active:
            drop_torn_line(run_dir / METRICS)
        self._file = (run_dir / METRICS).open("a") if active else None
        self._board = SummaryWriter(str(run_dir / "tb")) if active else None

    def write(self, record: Mapping[str, Any]) -> None:
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        prefix = record.get("split", record["kind"])
        for name, value in _scalars(record):
            self._board.add_scalar(f"{prefix}/{name}", value, record["step"])

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def drop_torn_line(file: Path) -> None:
    """Cut off what a process that was killed while it wrote has left behind the last line."""
    if file.exists():
        with file.open("rb+") as stream:
            content = stream.read()
            stream.truncate(content.rfind(b"\n") + 1)


def has_evaluation(run_dir: Path, split: str, step: int) -> bool:
    """Whether the run's records have an evaluation of the split at this step."""
    file = run_dir / METRICS
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    records = (json.loads(line) for line in lines if line.endswith("\n"))
    found = ((record["kind"], record.get("split"), record["step"]) for record in records)
    return ("eval", split, step) in found


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield prefix + name, value
