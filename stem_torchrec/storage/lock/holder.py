"""Who writes a folder: a process of a job, named so that others can tell whether it still lives."""

import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from stem_torchrec.stopping.processes import is_there, process_name

JOB_NAME = "STEM_TORCHREC_JOB"
"""Environment variable with a name that all nodes of a job have, and no other job has."""


class _Store(Protocol):
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...


def share_job_name(store: _Store | None, run_id: str) -> None:
    """Have the workers that this launcher starts know their job's name.

    The first of its launchers chooses it. A node that is lost and comes back has another launcher,
    but meets the others at the same store.
    """
    if store is not None:
        key = f"stem_torchrec.job.{run_id}"
        os.environ[JOB_NAME] = store.compare_set(key, "", uuid.uuid4().hex).decode()


@dataclass(frozen=True)
class Holder:
    """What a lock says of who holds it.

    Attributes:
        process: number and start of the process, as ``process_name`` has them.
        since: when it took the lock, UTC.
        job: what the lives of one job have in common; null where nothing starts it again.
        launcher: the process that starts the job's workers again, as ``process``; or null.
    """

    host: str
    process: str
    since: str
    job: str | None = None
    launcher: str | None = None

    @classmethod
    def this(cls, job: str | None = None, launcher: int | None = None) -> "Holder":
        """This process, on behalf of a job whose launcher has that number."""
        return cls(
            socket.gethostname(),
            process_name(os.getpid()),
            datetime.now(UTC).isoformat(timespec="seconds"),
            job,
            None if launcher is None else process_name(launcher),
        )

    @classmethod
    def read(cls, text: str) -> "Holder | None":
        """What ``text`` has written, in the first line; None for anything else."""
        try:
            content = json.loads(text.partition("\n")[0])
            names = {name: content.get(name) for name in cls.__dataclass_fields__}
            return cls(**names) if all(names[n] for n in ("host", "process", "since")) else None
        except (ValueError, AttributeError):
            return None

    def text(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    def __str__(self) -> str:
        number = self.process.split()[0]
        job = f", job {self.job}" if self.job else ""
        return f"process {number} on {self.host} since {self.since}{job}"

    def same_job(self, other: "Holder") -> bool:
        return self.job is not None and self.job == other.job

    def state(self) -> Literal["lives", "dead", "elsewhere"]:
        """Whether its process, or the launcher that would start it again, is there.

        Only this machine's can be told; one of another host is ``elsewhere``.
        """
        if self.host != socket.gethostname():
            return "elsewhere"
        lives = is_there(self.process) or self.may_come_again()
        return "lives" if lives else "dead"

    def may_come_again(self) -> bool:
        """Whether a launcher of this machine is there that starts its job's workers again."""
        here = self.host == socket.gethostname()
        return here and self.launcher is not None and is_there(self.launcher)
