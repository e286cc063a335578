"""Day after day: every day is judged by what was learnt before it, then trained on once."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from stem_torchrec.config import Config
from stem_torchrec.config.days import Days, parse_days
from stem_torchrec.data.days import by_day
from stem_torchrec.data.manifest import split_files
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.errors import SplitRefused, UserError
from stem_torchrec.runs.records import Record, read_records
from stem_torchrec.runs.replayed import Replayed
from stem_torchrec.stopping.interruption import Interruption
from stem_torchrec.training.course import Course
from stem_torchrec.training.evaluating import figures_on
from stem_torchrec.training.position import Position
from stem_torchrec.training.session import Session, open_split

_WITHOUT_EFFECT: Mapping[str, Mapping[str, Any]] = {
    "train": {"epochs": 1},
    "eval": {"every": None, "patience": None, "metric": None, "test_checkpoint": None},
    "checkpoint": {"keep_best": None},
}
"""What a replay has of its own: one pass over each day, and days in place of a valid split."""


def replay_of(
    config: Config, days: str | None, horizon: int = 1, *, allow_missing: bool = False
) -> tuple[Config, Replayed, list[str]]:
    """The config of a replay, its days, and warnings about keys that have no effect on it.

    Args:
        days: FIRST:LAST or one day; ``data.days`` if None, else all that the train split has.
        horizon: days ahead to judge, the next one included.
        allow_missing: pass over days of the range that the train split does not have.

    Raises:
        UserError: the range is none, the train split has no days, lacks one of the range or has
            one twice; the horizon is not from 1 to the number of days; the learning rates go by
            plateaus.
    """
    if config.optim.decay == "plateau":
        raise UserError(
            "optim.decay: 'plateau' goes by evaluations of the valid split, and a replay has none; "
            "allowed in a replay: none, linear, cosine"
        )
    chosen = _range(days if days is not None else config.data.days)
    files = split_files(config.data.path, "train")
    there = list(by_day(files, config.data.path / "train"))
    chosen = chosen or Days(there[0], there[-1])
    wanted = [day for day in there if chosen.first <= day <= chosen.last]
    if not wanted or not (allow_missing or len(wanted) == _length(chosen)):
        raise UserError(_missing(chosen, there))
    if not 1 <= horizon <= len(wanted):
        raise UserError(f"--horizon: {horizon}; allowed: 1 to {len(wanted)}, the number of days")
    settled, notes = _settled(config, chosen)
    return settled, Replayed(tuple(wanted), horizon), notes


def _range(text: str | None) -> Days | None:
    try:
        return parse_days(text) if text is not None else None
    except ValueError as error:
        raise UserError(f"--days: {text!r}; {error}") from None


def _length(days: Days) -> int:
    return (days.last - days.first).days + 1


def _missing(chosen: Days, there: Sequence[date]) -> str:
    every = (chosen.first + timedelta(days=n) for n in range(_length(chosen)))
    missing = [str(day) for day in every if day not in there]
    named = ", ".join(missing if len(missing) <= 10 else [*missing[:9], "...", missing[-1]])
    return (
        f"--days: the train split has no {named}; it has {there[0]} to {there[-1]} "
        f"({len(there)} days). --allow-missing passes over them"
    )


def _settled(config: Config, days: Days) -> tuple[Config, list[str]]:
    notes: list[str] = []
    chosen = config.data.model_copy(update={"days": f"{days.first}:{days.last}"})
    sections: dict[str, Any] = {"data": chosen}
    for name, keys in _WITHOUT_EFFECT.items():
        section = getattr(config, name)
        notes += [
            f"{name}.{key} has no effect in a replay"
            for key, value in keys.items()
            if getattr(section, key) not in (None, value)
        ]
        sections[name] = section.model_copy(update=keys)
    return config.model_copy(update=sections), notes


class Replay(Course):
    """An epoch for each day. Before it the day is judged, after it the weights are saved.

    A day's figures are of all its rows by weights that have seen none of them (progressive
    validation).

    Args:
        untrained: the weights of the first step are those of no other run.
    """

    tests = False

    def __init__(self, session: Session, replayed: Replayed, *, untrained: bool) -> None:
        self._session, self._untrained = session, untrained
        self._days, self._horizon = replayed.days, replayed.horizon

    def readers(self) -> Sequence[ParquetReader]:
        days = [Days(day, day) for day in self._days]
        return [open_split(self._session, "train", for_training=True, days=day) for day in days]

    def doubt(self, position: Position) -> str | None:
        return None

    def judges_after(self, position: Position, total_steps: int) -> bool:
        """Where a day begins."""
        return position.read.is_start and position.read.epoch < len(self._days)

    def owes(self, position: Position, total_steps: int) -> bool:
        if not self.judges_after(position, total_steps):
            return False
        day, run_dir = str(self._days[position.read.epoch]), self._session.config.run.dir

        def has_record() -> bool:
            return any(r["kind"] == "day" and r.get("day") == day for r in read_records(run_dir))

        return not self._session.ranks.on_first(has_record)

    def judge(self, position: Position, interruption: Interruption) -> Record:
        """The record of the day that comes; with a horizon also of those after it."""
        place = position.read.epoch
        day, *later = self._days[place : place + self._horizon]
        record = {
            "kind": "day",
            "day": str(day),
            "number": place + 1,
            "days": len(self._days),
            "step": position.step,
            "epoch": position.epoch,
            "untrained": self._untrained and position.step == 0,
        }
        record |= self._figures(day, interruption)
        if self._horizon > 1:
            record["ahead"] = {
                str(distance): {"day": str(day)} | self._figures(day, interruption)
                for distance, day in enumerate(later, start=2)
            }
        return record

    def saves_after(self, position: Position) -> bool:
        """Where a day ends."""
        return position.read.is_start

    def about(self, position: Position) -> dict[str, Any]:
        """The day that the last step belongs to, and how many days are through."""
        day = str(self._days[position.epoch - 1]) if position.step else None
        return {"day": day, "days_done": position.read.epoch}

    def _figures(self, day: date, interruption: Interruption) -> Record:
        try:
            reader = open_split(self._session, "train", in_file_order=True, days=Days(day, day))
        except UserError as error:  # the same on every rank
            raise SplitRefused(f"day {day} is not judged: {error}") from error
        return figures_on(self._session, reader, interruption)
