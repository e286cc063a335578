"""How far a run has come, how far it goes, and the batches in between."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from stem_torchrec.batch import Batch
from stem_torchrec.config import Config
from stem_torchrec.data.position import ReadPosition
from stem_torchrec.data.reader import ParquetReader


@dataclass
class Position:
    """How far a run has come: finished steps, samples of all ranks, and the place in the data.

    ``skipped`` of the steps were left out for bad numbers; their samples count.
    """

    read: ReadPosition
    step: int = 0
    samples: int = 0
    skipped: int = 0

    @property
    def epoch(self) -> int:
        """The pass over the data that the last step belongs to, counted from 1; 0 before any."""
        return self.read.epoch + (0 if self.read.is_start else 1)

    def advance(self, reader: ParquetReader) -> int:
        """Count one more step; returns its real samples of all ranks."""
        samples = self.read.division.samples_in_step(self.read.step)
        self.step += 1
        self.samples += samples
        self.read = reader.after(self.read)
        return samples

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "samples": self.samples,
            "skipped": self.skipped,
            **self.read.state_dict(),
        }


def total_train_steps(config: Config, reader: ParquetReader, position: Position) -> int:
    """Steps of the run: those done, those left of this epoch, and those of the epochs to come.

    The same at any position of an uninterrupted run; after going on with other ranks or another
    batch size the rest has other steps.
    """
    left, epochs_left = 0, config.train.epochs - position.read.epoch
    if epochs_left > 0:
        left = position.read.steps_left + (epochs_left - 1) * reader.steps_per_epoch
    steps = position.step + left
    return min(steps, config.train.max_steps or steps)


def batches_from(start: Position, reader: ParquetReader, total_steps: int) -> Iterator[Batch]:
    """This rank's batches from ``start`` to the last step, over the epochs' ends."""
    left, place = total_steps - start.step, start.read
    while left > 0:
        for batch in islice(reader.batches(place), left):
            yield batch
            left -= 1
        place = reader.start(place.epoch + 1)
