"""What a tracker is: it gets a run's records, beside ``metrics.jsonl``."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stem_torchrec.storage.place import Place

End = Literal["complete", "stopped", "failed"]


class Tracked(NamedTuple):
    """What a tracker knows of its run.

    Attributes:
        run_dir: the run's folder, which may be in a store.
        here: the folder on a disk where the records grow; ``run_dir`` unless that is in a store.
        step: finished steps; of later ones an earlier process may have written.
        settings: the config's values by ``section.key``.
    """

    run_dir: Place
    here: Path
    step: int = 0
    settings: Mapping[str, Any] = {}


class Tracker(ABC):
    """Shows a run's records; on rank 0 alone.

    A call may raise anything: the run leaves the tracker out from then on. None may wait for long,
    for all ranks wait with it.
    """

    @abstractmethod
    def add(self, record: Mapping[str, Any]) -> None:
        """One record, as ``metrics.jsonl`` has it."""

    @abstractmethod
    def flush(self) -> None:
        """Bring to the disk what waits; called before a checkpoint is published."""

    @abstractmethod
    def close(self, end: End) -> None:
        """The run has ended, here at least: a stopped one may go on in another process."""


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures of a record, ``loss/click`` and so on, but for the step."""
    return _scalars(record, "")


def group_of(record: Mapping[str, Any]) -> str:
    """What the figures' names start with: the split of an evaluation, else the kind."""
    return str(record.get("split", record["kind"]))


def _scalars(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield prefix + name, value
