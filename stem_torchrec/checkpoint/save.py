"""Writing checkpoints: aside, checked, then under their name; in the background if wanted."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from stem_torchrec.checkpoint.folders import PARTIAL, REPLACED, folder_of
from stem_torchrec.checkpoint.keep import remove_old
from stem_torchrec.checkpoint.manifest import (
    Manifest,
    describe,
    read_manifest,
    sync_folder,
    write_manifest,
)
from stem_torchrec.checkpoint.own import own_file
from stem_torchrec.checkpoint.staging import HostCopy
from stem_torchrec.config import CheckpointConfig
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import CheckpointError

T = TypeVar("T")
Failed = Callable[[int, str], None]

_log = logging.getLogger(__name__)


class Content(NamedTuple):
    """What one checkpoint holds.

    Attributes:
        step: finished steps.
        state: tensors and position, see ``state_of``.
        own: this rank's part, see ``own_state``.
        about: for the manifest: versions, plan and the like; the same on every rank.
    """

    step: int
    state: dict[str, Any]
    own: bytes
    about: Mapping[str, Any]


class Saver:
    """Writes the checkpoints of a run; one at a time.

    With ``checkpoint.asynchronous`` the caller waits for a copy to host memory alone, and for the
    save before if that still goes on. Every rank makes the same calls in the same order.

    Args:
        folder: of the checkpoints.
        failed: gets step and message of a save that failed, on every rank.
    """

    def __init__(
        self, config: CheckpointConfig, folder: Path, ranks: Ranks, failed: Failed | None = None
    ) -> None:
        self._config = config
        self._folder = folder
        self._ranks = ranks
        self._failed = failed
        self._stager = HostCopy()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[int, Future[str | None]] | None = None

    def save(self, content: Content) -> None:
        """Write ``folder/step_N``, or begin to. Collective.

        Raises:
            CheckpointError: this save, or the one before, failed and ``checkpoint.on_error`` is
                ``stop``.
        """
        self.wait()
        if not self._config.asynchronous:
            self._report(content.step, self._write(content, None))
            return
        aside, error = self._aside(content.step), None
        try:
            self._on_first(lambda: shutil.rmtree(aside, ignore_errors=True))
            written = dcp.async_save(
                content.state,
                checkpoint_id=aside,
                process_group=self._ranks.save_group,
                async_stager=self._stager,
            )
        except (Exception, CheckpointException) as failure:
            error = _message(failure)
        if error is not None:
            self._report(content.step, error)
            return
        small = content._replace(state={})
        self._pending = content.step, self._thread.submit(self._write, small, written)

    def wait(self) -> None:
        """Until the save that goes on, if any, is done. Collective.

        Raises:
            CheckpointError: as ``save`` does.
        """
        if self._pending is not None:
            step, outcome = self._pending
            self._pending = None
            self._report(step, outcome.result())

    def close(self) -> None:
        """End the thread and free the copy; what goes on is finished first."""
        self._thread.shutdown(wait=True)
        self._stager.close()

    def _report(self, step: int, error: str | None) -> None:
        if error is None:
            return
        if self._ranks.is_first:
            _log.warning("checkpoint of step %d failed: %s", step, error)
        if self._failed is not None:
            self._failed(step, error)
        if self._config.on_error == "stop":
            raise CheckpointError(f"checkpoint.on_error stop: step {step}: {error}")

    def _write(self, content: Content, written: Future[Any] | None) -> str | None:
        """Write, check, publish; the error's message, the same on every rank. Collective.

        Args:
            written: the tensors' way to the disk, if it has begun.
        """
        aside = self._aside(content.step)
        try:
            if written is not None:
                written.result()
            else:
                self._on_first(lambda: shutil.rmtree(aside, ignore_errors=True))
                dcp.save(content.state, checkpoint_id=aside, process_group=self._ranks.save_group)
            entries = self._on_all(lambda: self._write_own(aside, content.own))
            files = tuple(entry for part in entries for entry in part)
            about = {"step": content.step, "world_size": self._ranks.world_size} | dict(
                content.about
            )
            self._on_first(lambda: self._publish(aside, Manifest(about, files)))
        except (Exception, CheckpointException) as failure:
            if self._ranks.is_first:
                shutil.rmtree(aside, ignore_errors=True)  # the room may be what the next one needs
            return _message(failure)
        return None

    def _write_own(self, aside: Path, own: bytes) -> list[Any]:
        """This rank's file; entries of all its files, read back from the disk."""
        rank = self._ranks.rank
        with (aside / own_file(rank)).open("wb") as file:
            file.write(own)
            file.flush()
            os.fsync(file.fileno())
        names = [own_file(rank), *(path.name for path in aside.glob(f"__{rank}_*.distcp"))]
        if rank == 0:
            names.append(".metadata")
        return describe(aside, names)

    def _publish(self, aside: Path, manifest: Manifest) -> None:
        step = manifest.about["step"]
        final = folder_of(self._folder, step)
        write_manifest(aside, manifest)
        read_manifest(aside)
        if final.exists():
            old = final.with_name(final.name + REPLACED)
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        aside.rename(final)
        sync_folder(self._folder)
        remove_old(self._folder, step, keep=self._config.keep, metric=self._config.keep_best)

    def _aside(self, step: int) -> Path:
        final = folder_of(self._folder, step)
        return final.with_name(final.name + PARTIAL)

    def _on_first(self, function: Callable[[], None]) -> None:
        self._on_all(function if self._ranks.is_first else lambda: None)

    def _on_all(self, function: Callable[[], T]) -> list[T]:
        """Every rank's result on every rank, or an error on all. Collective."""
        own: tuple[T | None, str | None]
        try:
            own = function(), None
        except Exception as failure:
            own = None, f"rank {self._ranks.rank}: {_message(failure)}"
        outcomes: list[Any] = [own]
        if self._ranks.world_size > 1:
            outcomes = [None] * self._ranks.world_size
            dist.all_gather_object(outcomes, own, group=self._ranks.save_group)
        errors = [error for _, error in outcomes if error is not None]
        if errors:
            raise CheckpointError("; ".join(errors))
        return [result for result, _ in outcomes]


def _message(failure: BaseException) -> str:
    if isinstance(failure, CheckpointException):
        return "; ".join(f"rank {rank}: {_message(e)}" for rank, (e, _) in failure.failures.items())
    name = "" if isinstance(failure, CheckpointError) else f"{type(failure).__name__}: "
    return f"{name}{failure}"
