"""When to kill a rank."""

import random
import time
from typing import NamedTuple

from tests.faults.jobs import Job
from tests.faults.observed import RANKS


class Moment(NamedTuple):
    """A kill comes within ``delay_s`` after the first to ``last``-th such event of a life."""

    share: float
    delay_s: float
    last: int = 1


# Of a run's time saves and evaluations are a small part, so they are aimed at.
MOMENTS = {
    "start": Moment(0.2, 3.0),
    "step": Moment(0.15, 0.4, 12),
    "save": Moment(0.25, 0.03, 3),
    "write": Moment(0.15, 0.1, 3),
    "evaluation": Moment(0.15, 0.15, 3),
    "end": Moment(0.1, 0.2),
}


def kill_often(job: Job, num_kills: int, chance: random.Random) -> list[str]:
    """SIGKILL a random rank at random moments, at most so often; what the killed were at."""
    kills: list[str] = []
    begin = job.wait_for("start", after=0)
    while begin is not None and len(kills) < num_kills:
        event = chance.choices(list(MOMENTS), [moment.share for moment in MOMENTS.values()])[0]
        if not _reached(job, event, begin, chance):
            break
        time.sleep(chance.uniform(0, MOMENTS[event].delay_s))
        seen = job.num_events()
        phase = job.kill(chance.randrange(RANKS))
        if phase is None:
            break
        kills.append(phase)
        begin = job.wait_for("start", after=seen)
    return kills


def _reached(job: Job, event: str, begin: int, chance: random.Random) -> bool:
    """Whether the life that has begun there has come to one of these events."""
    if event == "start":
        return True
    # A life resumes before it takes a step; only then is there something else to hit.
    place = job.wait_for("step", after=begin)
    for _ in range(chance.randint(1, MOMENTS[event].last)):
        if place is None:
            return False
        place = job.wait_for(event, after=place)
    return place is not None
