"""Writing checkpoints: aside, checked, then under their name; in the background if wanted."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from stem_torchrec.checkpoint.failures import message_of
from stem_torchrec.checkpoint.files import Writer
from stem_torchrec.checkpoint.folders import discard, folder_of, is_leftover, publish
from stem_torchrec.checkpoint.keep import remove_old
from stem_torchrec.checkpoint.manifest import FileEntry, Manifest
from stem_torchrec.checkpoint.own import own_file
from stem_torchrec.checkpoint.staging import HostCopy
from stem_torchrec.config import CheckpointConfig
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import CheckpointError, UserError
from stem_torchrec.storage.place import Place
from stem_torchrec.storage.publishing import aside_of

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
        before: is called on rank 0 before a checkpoint appears, maybe in the background.

    Attributes:
        failure: why the newest save that has ended failed, or None.
        published: step of the newest checkpoint that is there under its name, on rank 0; what
            fails after that (another rank is lost) leaves it.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        folder: Place,
        ranks: Ranks,
        failed: Failed | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._config = config
        self._folder = folder
        self._ranks = ranks
        self._failed = failed
        self._before = before
        self._stager = HostCopy()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[int, Future[str | None]] | None = None
        self._last: Content | None = None
        self.failure: str | None = None
        self.published: int | None = None

    def save(self, content: Content, *, last: bool = False) -> None:
        """Write ``folder/step_N``, or begin to. Collective.

        Args:
            last: the run ends with it. A failure is left in ``failure``, whatever
                ``checkpoint.on_error`` says: there are no steps to be stopped.

        Raises:
            CheckpointError: this save, or the one before, failed and ``checkpoint.on_error`` is
                ``stop``.
        """
        self.wait()
        self._last = content if last else None
        writer = Writer(aside_of(folder_of(self._folder, content.step)))
        if not self._config.asynchronous:
            self._report(content.step, self._write(content, writer, None))
            return
        error = None
        try:
            self._on_first(lambda: discard(writer.folder))
            written = dcp.async_save(
                content.state,
                storage_writer=writer,
                process_group=self._ranks.save_group,
                async_stager=self._stager,
            )
        except (Exception, CheckpointException) as failure:
            error = message_of(failure)
        if error is not None:
            self._report(content.step, error)
            return
        small = content._replace(state={})
        self._pending = content.step, self._thread.submit(self._write, small, writer, written)

    def wait(self) -> None:
        """Until the save that goes on, if any, is done. Collective.

        Raises:
            CheckpointError: as ``save`` does.
        """
        if self._pending is not None:
            step, outcome = self._pending
            self._pending = None
            self._report(step, outcome.result())

    def try_again(self) -> None:
        """Save the last content once more if that failed: there may be room now. Collective.

        What it names must not have changed since.
        """
        if self.failure is None or self._last is None:
            return
        step = self._last.step
        self.save(self._last, last=True)
        self.wait()
        if self.failure is None and self._ranks.is_first:
            _log.warning("checkpoint of step %d: the second try succeeded", step)

    def close(self) -> None:
        """End the thread and free the copy; what goes on is finished first."""
        self._thread.shutdown(wait=True)
        self._stager.close()

    def _report(self, step: int, error: str | None) -> None:
        self.failure = error
        if error is None:
            return
        if self._ranks.is_first:
            _log.warning("checkpoint of step %d failed: %s", step, error)
        if self._failed is not None:
            self._failed(step, error)
        if self._config.on_error == "stop" and self._last is None:
            raise CheckpointError(f"checkpoint.on_error stop: step {step}: {error}")

    def _write(self, content: Content, writer: Writer, written: Future[Any] | None) -> str | None:
        """Write, check, publish; the error's message, the same on every rank. Collective.

        Args:
            written: the tensors' way to the disk, if it has begun.
        """
        try:
            if written is not None:
                written.result()
            else:
                self._on_first(lambda: discard(writer.folder))
                dcp.save(content.state, storage_writer=writer, process_group=self._ranks.save_group)
            entries = self._on_all(lambda: self._own_entries(writer, content.own))
            files = tuple(entry for part in entries for entry in part)
            about = {"step": content.step, "world_size": self._ranks.world_size} | dict(
                content.about
            )
            self._on_first(lambda: self._publish(writer.folder, Manifest(about, files)))
        except (Exception, CheckpointException) as failure:
            if self._ranks.is_first:
                with suppress(OSError, UserError):
                    # The room may be what the next one needs. Another rank may be lost when the
                    # checkpoint is published: then it stays.
                    if is_leftover(writer.folder):
                        discard(writer.folder)
            return message_of(failure)
        return None

    def _own_entries(self, writer: Writer, own: bytes) -> tuple[FileEntry, ...]:
        """Write this rank's file; the entries of all its files."""
        writer.write(own_file(self._ranks.rank), own)
        return writer.entries

    def _publish(self, aside: Place, manifest: Manifest) -> None:
        if self._before is not None:
            self._before()
        step = manifest.about["step"]
        publish(aside, folder_of(self._folder, step), manifest)
        self.published = step
        with suppress(UserError):  # a store that does not answer now is asked again next time
            remove_old(self._folder, step, keep=self._config.keep, metric=self._config.keep_best)

    def _on_first(self, function: Callable[[], None]) -> None:
        self._on_all(function if self._ranks.is_first else lambda: None)

    def _on_all(self, function: Callable[[], T]) -> list[T]:
        """Every rank's result on every rank, or an error on all. Collective."""
        own: tuple[T | None, str | None]
        try:
            own = function(), None
        except Exception as failure:
            own = None, f"rank {self._ranks.rank}: {message_of(failure)}"
        outcomes: list[Any] = [own]
        if self._ranks.world_size > 1:
            outcomes = [None] * self._ranks.world_size
            dist.all_gather_object(outcomes, own, group=self._ranks.save_group)
        errors = [error for _, error in outcomes if error is not None]
        if errors:
            raise CheckpointError("; ".join(errors))
        return [result for result, _ in outcomes]
