"""What a run that goes through days keeps of itself, so that nothing else goes on with it."""

import json
from datetime import date
from typing import NamedTuple

from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place, replace_text

REPLAY = "replay.json"


class Replayed(NamedTuple):
    """Which days a run goes through, in order, and how it is judged.

    Attributes:
        horizon: a day is judged by the weights of so many days before and of all between.
    """

    days: tuple[date, ...]
    horizon: int = 1


def write_replayed(run_dir: Place, replayed: Replayed) -> None:
    content = {"days": [str(day) for day in replayed.days], "horizon": replayed.horizon}
    replace_text(run_dir / REPLAY, json.dumps(content, indent=1) + "\n")


def read_replayed(run_dir: Place) -> Replayed | None:
    """What ``write_replayed`` wrote; None in a run of another kind.

    Raises:
        UserError: it is damaged.
    """
    file = run_dir / REPLAY
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
        days = tuple(date.fromisoformat(day) for day in content["days"])
        return Replayed(days, int(content["horizon"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not what a replay writes: {error}") from None


def check_replayed(run_dir: Place, now: Replayed | None) -> None:
    """Refuse to go on with a run by another command, through other days or with another horizon.

    Raises:
        UserError: names what differs.
    """
    before = read_replayed(run_dir)
    if before is None and now is not None:
        raise UserError(f"--resume: {str(run_dir)!r} holds a run of train; go on with train")
    if before is not None and now is None:
        raise UserError(f"--resume: {str(run_dir)!r} holds a replay; go on with replay")
    if before is None or now is None or before == now:
        return
    if before.horizon != now.horizon:
        raise UserError(f"--horizon: {now.horizon}, but the replay there has {before.horizon}")
    raise UserError(
        f"--days: {_named(now)}, but the replay there goes through {_named(before)}; start another "
        "run with --continue-from for other days"
    )


def _named(replayed: Replayed) -> str:
    days = replayed.days
    return f"{days[0]}:{days[-1]} ({len(days)} days)"
