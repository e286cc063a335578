"""A place in the data that a run can go on from, on any number of ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stem_torchrec.data.division import Division
from stem_torchrec.data.shares import Interval


@dataclass(frozen=True)
class ReadPosition:
    """Finished steps of an epoch, or of the part of it that was left after an interruption.

    The same on every rank. Nothing is communicated to go on with other ranks: the rows left
    follow from the division and its finished steps.

    Attributes:
        epoch: counted from 0.
        step: finished steps of ``division``.
        division: the rows that were to be read when the epoch was begun or gone on with.
        order: what the epoch's order of rows depends on, in short; see ``ParquetReader.order``.
        files: a checksum of the files it is read from; None where it was not kept.
    """

    epoch: int
    step: int
    division: Division
    order: str
    files: str | None

    @property
    def steps_left(self) -> int:
        """Steps to the epoch's end."""
        return self.division.steps - self.step

    @property
    def is_start(self) -> bool:
        """Whether nothing of the epoch has been read."""
        # Every step takes rows from the front of rank 0's share, which starts the sequence.
        return self.step == 0 and self.division.intervals[0].start == 0

    def reshaped(self, world_size: int, batch_size: int) -> "ReadPosition":
        """The same place for other ranks: itself if the shape is the same."""
        division = self.division
        if (division.world_size, division.batch_size) == (world_size, batch_size):
            return self
        left = Division(division.left_after(self.step), world_size, batch_size)
        return replace(self, step=0, division=left)

    def state_dict(self) -> dict[str, Any]:
        """Integers, lists and text, for a checkpoint; small."""
        return {
            "epoch": self.epoch,
            "step_in_epoch": self.step,
            "world_size": self.division.world_size,
            "batch_size": self.division.batch_size,
            "intervals": [list(interval) for interval in self.division.intervals],
            "order": self.order,
            "files": self.files,
        }


def position_from(state: Mapping[str, Any]) -> ReadPosition:
    """The position that ``state_dict`` has written; other keys are passed over."""
    intervals = tuple(Interval(*bounds) for bounds in state["intervals"])
    division = Division(intervals, state["world_size"], state["batch_size"])
    return ReadPosition(
        state["epoch"], state["step_in_epoch"], division, state["order"], state.get("files")
    )
