"""How far a run has come, how far it goes, and the batches in between."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stem_torchrec.config import Config
from stem_torchrec.data.batch import Batch
from stem_torchrec.data.position import ReadPosition
from stem_torchrec.data.reader import ParquetReader

ENOUGH_STEPS = 300
"""Adagrad and Adam move a weight by about a learning rate a step."""


_COUNTS = ("step", "samples", "skipped", "steps_before", "skipped_before")


class Position:
    """How far a run has come; the same on every rank.

    Args:
        readers: of the rows to train on. One is read in every epoch; of several each in one, in
            this order.

    Attributes:
        read: the place in the data.
        step: finished steps.
        samples: of all ranks.
        skipped: steps that were left out for bad numbers; their samples count.
        steps_before, skipped_before: of the runs that this one goes on with; schedules count them.
    """

    def __init__(self, *readers: ParquetReader) -> None:
        self._readers = readers
        self.read: ReadPosition = readers[0].start()
        self.step = self.samples = self.skipped = 0
        self.steps_before = self.skipped_before = 0

    @property
    def epoch(self) -> int:
        """The pass over the data that the last step belongs to, counted from 1; 0 before any."""
        return self.read.epoch + (0 if self.read.is_start else 1)

    def total_steps(self, config: Config) -> int:
        """Steps of the run: those done, those left of this epoch, and those of the epochs to come.

        The same at any position of an uninterrupted run; after going on with other ranks or
        another batch size the rest has other steps.
        """
        epochs = max(config.train.num_epochs, len(self._readers))
        left, to_come = 0, self.read.epoch + 1
        if self.read.epoch < epochs:
            left = self.read.steps_left
            left += sum(reader.steps_per_epoch for reader in self._readers[to_come:])
            again = epochs - max(to_come, len(self._readers))
            left += again * self._readers[-1].steps_per_epoch
        steps = self.step + left
        return min(steps, config.train.max_steps or steps)

    def batches(self, total_steps: int) -> Iterator[Batch]:
        """This rank's batches from here to the last step, over the epochs' ends."""
        left, place = total_steps - self.step, self.read
        while left > 0:
            for batch in islice(self._reader_of(place.epoch).batches(place), left):
                yield batch
                left -= 1
            place = self._start(place.epoch + 1)

    def advance(self) -> int:
        """Count one more step; returns its real samples of all ranks."""
        samples = self.read.division.samples_in_step(self.read.step)
        self.step += 1
        self.samples += samples
        if self.read.steps_left > 1:
            self.read = self._reader_of(self.read.epoch).after(self.read)
        else:
            self.read = self._start(self.read.epoch + 1)
        return samples

    def _reader_of(self, epoch: int) -> ParquetReader:
        return self._readers[min(epoch, len(self._readers) - 1)]

    def _start(self, epoch: int) -> ReadPosition:
        return self._reader_of(epoch).start(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, lists and text."""
        return {name: getattr(self, name) for name in _COUNTS} | self.read.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, on this reader's ranks.

        Raises:
            ValueError: it is no position.
            UserError: as ``ParquetReader.resumed``.
        """
        try:
            saved = _Saved.model_validate(dict(state))
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{first['loc'][0]}: {first['msg']}") from None
        self.read = self._reader_of(saved.epoch).resumed(state)
        for name in _COUNTS:
            setattr(self, name, getattr(saved, name))


def few_steps(config: Config, position: Position) -> str | None:
    """A warning if the epochs have so few steps that hardly anything is learnt; None otherwise.

    Not where ``train.max_steps`` asks for few.
    """
    steps, asked = position.total_steps(config), config.train.max_steps
    if steps >= ENOUGH_STEPS or (asked is not None and steps == asked):
        return None
    epochs, rows = config.train.num_epochs, config.train.batch_rows
    return (
        f"train.epochs {epochs} with train.batch_size {rows} rows per rank make {steps} steps, "
        f"and tables and weights learn little in fewer than {ENOUGH_STEPS}: set a smaller "
        "train.batch_size or more train.epochs (eval.patience ends them in time, "
        "checkpoint.keep_best keeps the best weights)"
    )


class _Saved(BaseModel):
    """What ``Position.state_dict`` gives. Checkpoints of format 1 have no ``files``, older ones
    no steps before."""

    model_config = ConfigDict(strict=True)

    step: int = Field(ge=0)
    samples: int = Field(ge=0)
    skipped: int = Field(ge=0)
    steps_before: int = Field(0, ge=0)
    skipped_before: int = Field(0, ge=0)
    epoch: int = Field(ge=0)
    step_in_epoch: int = Field(ge=0)
    world_size: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    intervals: list[Annotated[list[int], Field(min_length=2, max_length=2)]]
    order: str
    files: str | None = None
