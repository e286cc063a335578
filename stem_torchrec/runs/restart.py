"""What a worker does with the run folder when the launcher has started it again."""

import json
import os
import socket

from stem_torchrec import checkpoint
from stem_torchrec.errors import StoreUnreachable, UserError
from stem_torchrec.runs.folder import JOB, Existing
from stem_torchrec.stopping.processes import process_name
from stem_torchrec.storage.lock.holder import JOB_NAME, Holder
from stem_torchrec.storage.place import Place, remove, replace_text


def existing_after_restart(run_dir: Place, existing: Existing) -> Existing:
    """``existing``, but for a folder that this very job has begun: go on from its newest valid
    checkpoint, or anew where none was ever completed. Damaged ones are never deleted for a start
    anew: going on then fails and names them.

    Another job's run is never taken for this one's, so a folder that was refused stays refused
    however often the launcher starts the workers.
    """
    job = this_job()
    if job is None or existing == "resume" or _job_of(run_dir) != job:
        return existing
    return "resume" if checkpoint.has_published(run_dir) else "overwrite"


def this_job() -> dict[str, str] | None:
    """What tells a job from every other, where its launcher starts workers again; else None.

    That is the name which its launchers share. Plain torchrun has none: there the launcher's
    process on rank 0's node stands for it.
    """
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) == 0:
        return None
    if name := os.environ.get(JOB_NAME):
        return {"run_id": os.environ["TORCHELASTIC_RUN_ID"], "name": name}
    return {
        "run_id": os.environ["TORCHELASTIC_RUN_ID"],
        "host": socket.gethostname(),
        "launcher": process_name(os.getppid()),
    }


def holder() -> Holder:
    """Who writes the run folder: this process, for its job."""
    job = this_job()
    if job is None:
        return Holder.this()
    return Holder.this(" ".join(job.values()), launcher=os.getppid())


def mark(run_dir: Place) -> None:
    """Say in the folder that its run is this job's, before there is anything else of the run."""
    job = this_job()
    if job is None:
        remove(run_dir / JOB)
    else:
        replace_text(run_dir / JOB, json.dumps(job))


def _job_of(run_dir: Place) -> object:
    try:
        return json.loads((run_dir / JOB).read_text())
    except StoreUnreachable:
        raise
    except (OSError, UserError, ValueError):
        return None
