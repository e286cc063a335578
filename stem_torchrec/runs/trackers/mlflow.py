"""A run in MLflow's store: the config as parameters, records as metrics, files as artifacts.

Where the store is, and under which experiment, say MLflow's own variables (MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME).
"""

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from time import time
from typing import TYPE_CHECKING, Any

from stem_torchrec.runs.trackers.tracker import End, Tracked, Tracker, group_of, scalars
from stem_torchrec.storage.place import replace_text

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILE = "mlflow.json"
"""In the run's folder: which of the store's runs it is, so that it goes on there."""

WAITING = 10_000
"""Records that may wait for a store that does not answer."""

CLOSE_S = 30.0
"""How long the end of a run waits for the store: less than ``run.grace_s`` after a signal."""

_DESCRIBING = ("config.yaml", "schema.json", "plan.txt", "init.json")
_RECORDS = ("metrics.jsonl",)
_STATUS: dict[End, str] = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_RECORDS_AT_ONCE, _PARAMETERS_AT_ONCE, _METRICS_AT_ONCE = 100, 100, 1000
_LONGEST_PARAMETER = 6000

_log = logging.getLogger(__name__)


class Mlflow(Tracker):
    """Hands records to a thread: the store may be a server that takes its time or has gone.

    Its first failure is its last; the next call raises it.
    """

    def __init__(self, run: Tracked) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._run = run
        self._queue: Queue[Mapping[str, Any] | End] = Queue(WAITING)
        self._failure: Exception | None = None
        self._thread = Thread(target=self._work, name="stem_torchrec-mlflow", daemon=True)
        self._thread.start()

    def add(self, record: Mapping[str, Any]) -> None:
        self._put(record)

    def flush(self) -> None:
        self._raise_failure()

    def close(self, end: End) -> None:
        self._put(end)
        self._thread.join(CLOSE_S)
        self._raise_failure()
        if self._thread.is_alive():
            raise TimeoutError(f"the store has not taken the last records in {CLOSE_S:.0f} s")

    def _put(self, item: Mapping[str, Any] | End) -> None:
        self._raise_failure()
        try:
            self._queue.put_nowait(item)
        except Full:
            raise TimeoutError(f"{WAITING} records wait for the store") from None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            entry, end = _Entry(self._run), None
            while end is None:
                items = self._next()
                entry.log([item for item in items if not isinstance(item, str)])
                end = next((item for item in items if isinstance(item, str)), None)
            entry.end(end)
        except Exception as error:  # whatever a store, a network or another package raises
            self._failure = error

    def _next(self) -> list[Mapping[str, Any] | End]:
        """What has come since, at least one."""
        found = [self._queue.get()]
        while not self._queue.empty() and len(found) < _RECORDS_AT_ONCE:
            found.append(self._queue.get())
        return found


class _Entry:
    """The store's run, made or found again."""

    def __init__(self, run: Tracked) -> None:
        from mlflow import MlflowClient

        self._client: MlflowClient = MlflowClient()
        self._run = run
        file = run.run_dir / FILE
        if file.is_file():
            self._id = str(json.loads(file.read_text())["run_id"])
            known = self._client.get_run(self._id).data.params
            self._client.update_run(self._id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
            made = self._client.create_run(_experiment(self._client, name), run_name=run.here.name)
            self._id, known = made.info.run_id, {}
            replace_text(file, json.dumps({"run_id": self._id}) + "\n")
        self._log_settings(known)
        self._log_files(_DESCRIBING)

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time())
        metrics = [
            Metric(f"{group_of(r)}/{name}", value, int(1000 * r.get("time", 0)) or now, r["step"])
            for r in records
            for name, value in scalars(r)
        ]
        for start in range(0, len(metrics), _METRICS_AT_ONCE):
            part = metrics[start : start + _METRICS_AT_ONCE]
            self._client.log_batch(self._id, metrics=part)

    def end(self, end: End) -> None:
        self._log_files(_RECORDS)
        self._client.set_terminated(self._id, _STATUS[end])

    def _log_settings(self, known: Mapping[str, str]) -> None:
        """Parameters stay what they were at first; ``config.yaml`` has those of a run gone on."""
        from mlflow.entities import Param

        new = {n: str(v)[:_LONGEST_PARAMETER] for n, v in self._run.settings.items()}
        params = [Param(name, value) for name, value in new.items() if name not in known]
        for start in range(0, len(params), _PARAMETERS_AT_ONCE):
            part = params[start : start + _PARAMETERS_AT_ONCE]
            self._client.log_batch(self._id, params=part)

    def _log_files(self, names: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                places = (self._run.here / name, self._run.run_dir / name)
                found = next((place for place in places if place.is_file()), None)
                if found is not None:
                    (Path(folder) / name).write_bytes(found.read_bytes())
            self._client.log_artifacts(self._id, folder)


def _experiment(client: "MlflowClient", name: str) -> str:
    found = client.get_experiment_by_name(name)
    return client.create_experiment(name) if found is None else found.experiment_id
