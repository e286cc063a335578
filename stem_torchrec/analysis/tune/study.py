"""A study: its trials in a SQLite file, which several processes work on at a time.

What they decide together (which trial is next, whose was lost) happens in turns: each holds the
folder's ``.turn`` for a moment.
"""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError

from stem_torchrec.analysis.tune.space import Space, Value
from stem_torchrec.errors import UserError
from stem_torchrec.storage.folder_choice import usable
from stem_torchrec.storage.lock.holder import Holder

FILE = "study.db"
NAME = "tune"
_SPARED = 1
"""First evaluations by which no trial is pruned: what learns slowly may yet learn most."""

WAIT_S = 60.0
"""How long SQLite waits for another process."""

# Attributes of a trial.
_HOLDER, _FOLDER, _AGAIN = "holder", "folder", "again_of"
FAILURE, LAST_VALUE, SECONDS = "failure", "last_value", "seconds"
# Attributes of a study.
_MADE_OF = "made_of"


class Chosen(NamedTuple):
    """A trial that this process is to run.

    Attributes:
        folder: of its run; an earlier process may have begun it there.
    """

    trial: optuna.Trial
    values: Mapping[str, Value]
    folder: str

    @property
    def number(self) -> int:
        return self.trial.number


class Study:
    """The trials in a folder.

    Args:
        space: what trials choose from.
        seed: of the choices; those of trial n depend on it, n and the trials that have ended.
    """

    def __init__(self, folder: Path, space: Space, seed: int, *, maximize: bool) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with usable("--out", folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._space, self._seed = folder, space, seed
        with self.turn(), _readable(folder):
            self._study = optuna.create_study(
                storage=_storage(folder),
                study_name=NAME,
                direction="maximize" if maximize else "minimize",
                pruner=optuna.pruners.MedianPruner(n_warmup_steps=_SPARED + 1),
                load_if_exists=True,
            )

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While it is entered, no other process decides about the study's trials."""
        with (self._folder / ".turn").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def trials(self) -> list[FrozenTrial]:
        """By number, without those that another one stands for, or that wait to begin again."""
        found = self._study.get_trials(deepcopy=False)
        replaced = _replaced(found)
        waiting = (TrialState.WAITING,)
        return [t for t in found if t.number not in replaced and t.state not in waiting]

    @property
    def finished(self) -> list[FrozenTrial]:
        """Those that have a value; of pruned ones Optuna gives the last evaluation's."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    @property
    def best(self) -> FrozenTrial | None:
        """The finished trial with the best value."""
        return self._study.best_trial if self.finished else None

    def importances(self) -> dict[str, float]:
        """The share of the values' variance that each key explains (fANOVA); empty if unknown."""
        if len({trial.value for trial in self.finished}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self._seed)
        found = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {name: float(share) for name, share in found.items()}

    def claim(self, made_of: Mapping[str, Any], first: Mapping[str, Value] | None) -> None:
        """Say what the study's trials have in common, or find that it says so already.

        Args:
            first: the values of its first trial, if they are given.

        Raises:
            UserError: the folder's study is of another config, space or data; names the difference.
        """
        with self.turn():
            found = self._study.user_attrs.get(_MADE_OF)
            if found is None:
                self._study.set_user_attr(_MADE_OF, dict(made_of))
                if first is not None:
                    self._study.enqueue_trial(dict(first))
                return
        for name in [*found, *(name for name in made_of if name not in found)]:
            if found.get(name) != made_of.get(name):
                raise UserError(
                    f"--out: the study in {str(self._folder)!r} has {name} {found.get(name)!r}, "
                    f"wanted {made_of.get(name)!r}; choose another folder"
                )

    def next(self, limit: int | None) -> Chosen | None:
        """Begin the next trial; None where there are ``limit`` already."""
        with self.turn():
            self._put_right()
            if limit is not None and len(self.trials) >= limit:
                return None
            number = len(self._study.get_trials(deepcopy=False))
            seed = self._seed * 1_000_003 + number
            self._study.sampler = optuna.samplers.TPESampler(seed=seed % 2**32, constant_liar=True)
            trial = self._study.ask()
            folder = trial.user_attrs.get(_FOLDER, f"trial_{trial.number:04d}")
            trial.set_user_attr(_FOLDER, folder)
            trial.set_user_attr(_HOLDER, Holder.this().text())
            values = {key: part.suggest(trial, key) for key, part in self._space.items()}
            return Chosen(trial, values, folder)

    def finish(self, chosen: Chosen, value: float) -> None:
        self._study.tell(chosen.trial, value)

    def prune(self, chosen: Chosen) -> None:
        self._study.tell(chosen.trial, state=TrialState.PRUNED)

    def fail(self, chosen: Chosen, message: str) -> None:
        chosen.trial.set_user_attr(FAILURE, message)
        self._study.tell(chosen.trial, state=TrialState.FAIL)

    def give_back(self, chosen: Chosen) -> None:
        """An interruption has ended the trial: the next one goes on in its folder."""
        with self.turn():
            (trial,) = (
                t for t in self._study.get_trials(deepcopy=False) if t.number == chosen.number
            )
            self._again(trial)

    def _put_right(self) -> None:
        """Trials whose process was killed wait to begin again."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            holder = Holder.read(trial.user_attrs.get(_HOLDER, ""))
            if holder is None or holder.state() == "dead":
                self._again(trial)

    def _again(self, trial: FrozenTrial) -> None:
        if trial.number not in _replaced(self._study.get_trials(deepcopy=False)):
            folder = trial.user_attrs.get(_FOLDER, f"trial_{trial.number:04d}")
            attributes = {_FOLDER: folder, _AGAIN: trial.number}
            self._study.enqueue_trial(trial.params, user_attrs=attributes)
        self._study.tell(trial.number, state=TrialState.FAIL)


def _storage(folder: Path) -> optuna.storages.RDBStorage:
    engine = {"connect_args": {"timeout": WAIT_S}}
    return optuna.storages.RDBStorage(f"sqlite:///{folder.absolute() / FILE}", engine_kwargs=engine)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Name the file where it is no study, or one of another version of Optuna."""
    try:
        yield
    except (DatabaseError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"--out: {str(folder / FILE)!r} cannot be read as a study: {why}") from None


def _replaced(trials: list[FrozenTrial]) -> set[int]:
    return {t.user_attrs[_AGAIN] for t in trials if _AGAIN in t.user_attrs}
