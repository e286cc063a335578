"""What a run reads, and when and on what it is judged."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.runs.records import Record, has_evaluation
from stem_torchrec.stopping.interruption import Interruption
from stem_torchrec.training.evaluating import evaluate
from stem_torchrec.training.position import Position, few_steps
from stem_torchrec.training.session import Session, open_split


class Course(ABC):
    """The rows of a run's epochs, its evaluations, and what it saves beside ``checkpoint.every``.

    Every rank makes the same calls.

    Attributes:
        tests: whether the run ends with the test split.
    """

    tests: bool

    @abstractmethod
    def readers(self) -> Sequence[ParquetReader]:
        """Those of ``Position``. Collective."""

    @abstractmethod
    def doubt(self, position: Position) -> str | None:
        """A warning about what the whole of it can teach; None where there is none."""

    @abstractmethod
    def judges_after(self, position: Position, total_steps: int) -> bool:
        """Whether an evaluation follows the step that was just done."""

    @abstractmethod
    def owes(self, position: Position, total_steps: int) -> bool:
        """Whether the run has yet to be judged where it stands. Collective."""

    @abstractmethod
    def judge(self, position: Position, interruption: Interruption) -> Record:
        """The evaluation that is due. Collective.

        Raises:
            SplitRefused: its files are not there or not as they should be, on every rank.
            Stopped: the ranks have agreed to stop.
        """

    @abstractmethod
    def saves_after(self, position: Position) -> bool:
        """Whether a checkpoint follows the step that was just done."""

    @abstractmethod
    def about(self, position: Position) -> dict[str, Any]:
        """What a checkpoint's manifest says of the place."""


class Epochs(Course):
    """Passes over the train split, judged on the valid split, tested at the end."""

    tests = True

    def __init__(self, session: Session) -> None:
        self._session = session

    def readers(self) -> Sequence[ParquetReader]:
        return [open_split(self._session, "train", for_training=True)]

    def doubt(self, position: Position) -> str | None:
        return few_steps(self._session.config, position)

    def judges_after(self, position: Position, total_steps: int) -> bool:
        """Every so many steps or at each epoch's end, and after the last step."""
        every, last = self._session.config.eval.every, position.step == total_steps
        due = position.read.is_start if every is None else position.step % every == 0
        return (due or last) and "valid" in self._session.splits

    def owes(self, position: Position, total_steps: int) -> bool:
        """Whether the run was stopped before the evaluation that follows its step."""
        step, session = position.step, self._session
        if step == 0 or not self.judges_after(position, total_steps):
            return False
        run_dir = session.config.run.dir
        return not session.ranks.on_first(lambda: has_evaluation(run_dir, "valid", step))

    def judge(self, position: Position, interruption: Interruption) -> Record:
        return evaluate(self._session, "valid", position.step, position.epoch, interruption)

    def saves_after(self, position: Position) -> bool:
        return False

    def about(self, position: Position) -> dict[str, Any]:
        return {}
