"""The records of a run: one JSON object per line of ``metrics.jsonl``, and TensorBoard."""

import json
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from stem_torchrec.growing_folder import GrowingFolder
from stem_torchrec.place import Place

METRICS = "metrics.jsonl"

Record = dict[str, Any]
Listener = Callable[[Record], None]


class Recorder:
    """Appends records to ``metrics.jsonl`` and TensorBoard; on ranks but the first, nothing.

    Args:
        step: finished steps; TensorBoard hides what an earlier process has written of later ones.
    """

    def __init__(self, run_dir: Place, *, active: bool, step: int = 0) -> None:
        self._growing = GrowingFolder(run_dir, [METRICS]) if active else None
        if self._growing is None:
            return
        self._file = (self._growing.here / METRICS).open("a")
        purge = step + 1 if step else None
        self._board = SummaryWriter(str(self._growing.here / "tb"), purge_step=purge)

    def write(self, record: Mapping[str, Any]) -> None:
        if self._growing is None:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        prefix = record.get("split", record["kind"])
        for name, value in _scalars(record):
            self._board.add_scalar(f"{prefix}/{name}", value, record["step"])
        self._growing.upload_now_and_then()

    def upload(self) -> None:
        """Bring all records so far to where the run is, if that is a store.

        Raises:
            UserError: they cannot be written there.
        """
        if self._growing is not None:
            self._board.flush()
            self._growing.upload()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._growing is not None:
            self._file.close()
            self._board.close()
            self._growing.close(failed=error is not None)


def has_evaluation(run_dir: Place, split: str, step: int) -> bool:
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
