"""The records of a run: one JSON object per line of ``metrics.jsonl``, and TensorBoard."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"

Record = dict[str, Any]
Listener = Callable[[Record], None]


class Recorder:
    """Appends records to ``metrics.jsonl`` and TensorBoard; on ranks but the first, nothing.

    Args:
        step: finished steps; TensorBoard hides what an earlier process has written of later ones.
    """

    def __init__(self, run_dir: Path, *, active: bool, step: int = 0) -> None:
        self._file = (run_dir / METRICS).open("a") if active else None
        purge = step + 1 if step else None
        self._board = SummaryWriter(str(run_dir / "tb"), purge_step=purge) if active else None

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
