"""A lock where there are none: a file that its holder writes anew as long as it lives.

Neither clocks nor conditional writes are relied on. Who wants a file that another host has written
watches it: if it changes, its holder lives. Who writes it reads it back a little later, and before
every beat: the last writer has it. A holder whose writes are delayed for longer than that may
work beside another until its next beat, which ends it.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from stem_torchrec.errors import UserError
from stem_torchrec.stopping.ending import end_process
from stem_torchrec.storage.lock.holder import Holder
from stem_torchrec.storage.place import Place, remove

BEAT_S = 15.0
LEASE_S = 60.0
"""Without a beat for so long a holder is taken for dead."""

SETTLE_S = 1.0
_POLL_S = 2.0

_log = logging.getLogger(__name__)

Refusal = Callable[[Holder | None], UserError]


@contextmanager
def leased(file: Place, holder: Holder, refused: Refusal) -> Iterator[None]:
    """Hold the lease; this process is ended where another job has taken it nevertheless.

    Raises:
        UserError: ``refused(other)`` if another job holds it; or the store does not answer.
    """
    lease = _Lease(file, holder)
    lease.take(refused)
    ended = Event()
    thread = Thread(target=lease.beat, args=(ended,), name="stem_torchrec-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        lease.release()


class _Lease:
    def __init__(self, file: Place, holder: Holder) -> None:
        self._file = file
        self._holder = holder
        self._token = uuid.uuid4().hex
        self._beats = 0

    def take(self, refused: Refusal) -> None:
        text = _read(self._file)
        other = None if text is None else Holder.read(text)
        if other is not None and not other.same_job(self._holder):
            state = other.state()
            if state == "lives":
                raise refused(other)
            if state == "elsewhere":
                self._wait_for_its_end(text, other, refused)
        self._write()
        time.sleep(SETTLE_S)
        text = _read(self._file)
        if text is None or self._token not in text:
            raise refused(None if text is None else Holder.read(text))

    def _wait_for_its_end(self, text: str | None, other: Holder, refused: Refusal) -> None:
        _log.warning("%s: waiting up to %.0f s to see whether %s lives", self._file, LEASE_S, other)
        end = time.monotonic() + LEASE_S
        while time.monotonic() < end:
            time.sleep(min(_POLL_S, LEASE_S / 4))
            now = _read(self._file)
            if now is None:
                return
            if now != text:
                raise refused(Holder.read(now))

    def beat(self, ended: Event) -> None:
        """Write it every ``BEAT_S``; the thread of a holder."""
        while not ended.wait(BEAT_S):
            try:
                text = _read(self._file)
                if text is not None and self._token not in text:
                    who = Holder.read(text) or "another process"
                    end_process(f"{self._file}: the folder has been taken by {who}", 1)
                self._write()
            except (OSError, UserError) as error:
                _log.warning("the lock of the folder is not renewed: %s", error)

    def release(self) -> None:
        with suppress(OSError, UserError):
            text = _read(self._file)
            if text is not None and self._token in text:
                remove(self._file)

    def _write(self) -> None:
        self._beats += 1
        self._file.write_text(f"{self._holder.text()}{self._token} {self._beats}\n")


def _read(file: Place) -> str | None:
    return file.read_text(errors="replace") if file.is_file() else None
