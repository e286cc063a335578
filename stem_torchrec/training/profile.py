"""Where the time of some steps goes: torch's profiler, into the run's folder."""

import logging
import tempfile
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import profile, record_function, supported_activities

from stem_torchrec.config import Config
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place

FOLDER = "profile"
TRACE, TABLE = "rank_0.trace.json", "rank_0.operations.txt"
_ROWS = 50

_log = logging.getLogger(__name__)


class Profile:
    """Profiles the steps that ``train.profile`` names, on rank 0; a context that ends with the run.

    The window's files come when its last step is done, or when the run ends in it. A run that is
    resumed in the window has those of its steps that are left. Evaluations and checkpoints between
    the steps are part of the profile.
    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self._window = config.train.profiled if ranks.is_first else None
        self._folder = config.run.dir / FOLDER
        self._device = ranks.device
        self._profiler: profile | None = None
        self._step: record_function | None = None

    def before(self, step: int) -> None:
        """Called before each step, counted from 1: begin with the window's first, end after its
        last."""
        if self._window is None:
            return
        if step > self._window.last:
            self._finish()
        elif step >= self._window.first:
            self._begin(step)

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._finish()

    def _begin(self, step: int) -> None:
        if self._profiler is None:
            self._profiler = profile(activities=supported_activities())
            self._profiler.start()
        self._end_step()
        self._step = record_function(f"step {step}")
        self._step.__enter__()

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def _finish(self) -> None:
        if self._profiler is None:
            return
        self._end_step()
        done, self._profiler = self._profiler, None
        done.stop()
        try:
            _write(done, self._folder, self._device)
        except (OSError, UserError) as error:  # the run is worth more than its profile
            _log.warning("train.profile: %s could not be written: %s", self._folder, error)


def _write(done: profile, folder: Place, device: torch.device) -> None:
    """The trace, for a trace viewer (Perfetto, chrome://tracing), and the dearest operations."""
    key = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    table = done.key_averages().table(sort_by=key, row_limit=_ROWS, max_name_column_width=80)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLE).write_text(table + "\n")
    with tempfile.TemporaryDirectory() as local:  # the profiler writes to disks only
        trace = Path(local) / TRACE
        done.export_chrome_trace(str(trace))
        (folder / TRACE).write_bytes(trace.read_bytes())
