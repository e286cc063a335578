"""The export that answers now, and its successor when one is put in its place."""

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from stem_torchrec.errors import UserError
from stem_torchrec.serving.manifest import version_of
from stem_torchrec.serving.predictor import Predictor

_POLL_S = 1.0

_log = logging.getLogger(__name__)


class CurrentModel:
    """Holds a predictor, and takes up another export of the folder as soon as it is whole.

    Requests that have begun end with the predictor that they have begun with.

    Args:
        reloaded: is told whether a new export could be taken up.

    Raises:
        UserError: the folder is no export.
    """

    def __init__(self, folder: Path, reloaded: Callable[[bool], None]) -> None:
        self._folder = folder
        self._reloaded = reloaded
        self._refused: str | None = None
        self._ended = Event()
        self.predictor = Predictor(folder)
        self._watcher = Thread(target=self._watch, name="exports", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            try:
                version = version_of(self._folder)
            except UserError:  # between two exports there is none
                continue
            if version not in (self.predictor.version, self._refused):
                self._take_up(version)

    def _take_up(self, version: str) -> None:
        try:
            predictor = Predictor(self._folder)
        except Exception as error:
            _log.error("the new export is not taken up, the old one goes on: %s", error)
            self._refused = version
            self._reloaded(False)
            return
        self.predictor = predictor
        _log.info("version %s is taken up", predictor.version)
        self._reloaded(True)
