"""Files that are appended to, in a folder on a disk or in a store."""

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from time import monotonic

from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place, relative
from stem_torchrec.storage.store_path import StorePath

EVERY_S = 60.0
"""Between two uploads of what grows."""

_log = logging.getLogger(__name__)


class GrowingFolder:
    """A folder to append to.

    In a store nothing can be appended: the files grow in a temporary folder and are copied there
    whole. ``upload`` may be called from any thread.

    Args:
        names: files that may be there already, and go on.

    Attributes:
        here: where to write; the folder itself if it is on a disk.
    """

    def __init__(self, folder: Place, names: Sequence[str]) -> None:
        self._store = folder if isinstance(folder, StorePath) else None
        self._uploaded: dict[Path, int] = {}
        self._lock = Lock()
        self._next_s = monotonic() + EVERY_S
        if not isinstance(folder, StorePath):
            self.here = folder
            return
        self.here = Path(tempfile.mkdtemp(prefix="stem_torchrec-records-"))
        for name in names:
            if (folder / name).is_file():
                (self.here / name).write_bytes((folder / name).read_bytes())

    def upload(self) -> None:
        """Copy every file that has grown.

        Raises:
            UserError: the store refuses it or does not answer.
        """
        if self._store is None:
            return
        with self._lock:
            self._next_s = monotonic() + EVERY_S
            for file in sorted(path for path in self.here.rglob("*") if path.is_file()):
                if self._uploaded.get(file) == file.stat().st_size:
                    continue
                content = file.read_bytes()
                (self._store / relative(file, self.here).as_posix()).write_bytes(content)
                self._uploaded[file] = len(content)

    def upload_now_and_then(self) -> None:
        """``upload`` if the last one is a while ago; what fails is tried again the next time."""
        if self._store is None or monotonic() < self._next_s:
            return
        try:
            self.upload()
        except UserError as error:
            _log.warning("records are not uploaded yet: %s", error)

    def close(self, *, failed: bool) -> None:
        """Upload the rest, and remove the temporary folder.

        Args:
            failed: an error is on its way, which counts more than one of the store.

        Raises:
            UserError: as ``upload``; says where the files are kept.
        """
        if self._store is None:
            return
        try:
            self.upload()
        except UserError as error:
            kept = UserError(f"{error}; the run's records are kept in {self.here}")
            if not failed:
                raise kept from None
            _log.warning("%s", kept)
            return
        shutil.rmtree(self.here, ignore_errors=True)
