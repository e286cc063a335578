"""Read the footers of a split's files in parallel, and those of many files only once.

Thousands of footers take a minute on a network file system. What they said is kept in the user's
cache folder, not beside the data, which may be read-only or somebody else's.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from stem_torchrec.storage.place import Place

MIN_FILES = 64
"""A split of fewer files is not remembered: its footers are read in no time."""

_THREADS = 8
_FORMAT = 2  # of the cache; another one is not read


class Footer(NamedTuple):
    """What a run needs to know of a file.

    Attributes:
        rows: of each row group.
        digest: of the file's size and footer; see ``footer_digest``.
    """

    rows: list[int]
    digest: str


Read = Callable[[Place], Footer]


def read_footers(files: Sequence[Place], read: Read, purpose: str) -> list[Footer]:
    """``read(file)`` for every file, a few files at a time.

    A file that was read for the same ``purpose`` and has kept its size and time of change since
    is not read again. The cache is ``$XDG_CACHE_HOME/stem_torchrec/footers`` (``~/.cache``
    without that variable) and may be deleted at any time.

    Args:
        files: at least one.
        purpose: everything besides the file that decides whether ``read`` raises.

    Raises:
        Exception: what ``read`` raises; nothing is remembered then.
    """
    with ThreadPoolExecutor(min(_THREADS, len(files))) as pool:
        home = _cache_home()
        if len(files) < MIN_FILES or home is None:
            return list(pool.map(read, files))
        names = [str(file.absolute()) for file in files]
        states = list(pool.map(_state, files))
        cache = _cache_file(home, names, purpose)
        known = _load(cache)

        def look_up(index: int) -> Footer:
            state, *footer = known.get(names[index], (None, [], ""))
            return Footer(*footer) if state == states[index] else read(files[index])

        found = list(pool.map(look_up, range(len(files))))
    entries = known | {n: [s, *f] for n, s, f in zip(names, states, found, strict=True)}
    if entries != known:
        _save(cache, entries)
    return found


def _state(file: Place) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _cache_home() -> Path | None:
    """None for a user without a home."""
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def _cache_file(home: Path, names: Sequence[str], purpose: str) -> Path:
    key = json.dumps([_FORMAT, os.path.commonpath(names), purpose])
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    return home / "stem_torchrec" / "footers" / f"{digest}.json"


def _load(cache: Path) -> dict[str, list]:
    try:
        content = json.loads(cache.read_text())
    except (OSError, ValueError):  # none yet, or cut short: the footers are there to be read
        return {}
    return content if isinstance(content, dict) else {}


def _save(cache: Path, entries: dict[str, list]) -> None:
    aside = cache.with_suffix(f".{os.getpid()}.partial")
    with suppress(OSError):  # a full or read-only home: the next start reads the footers again
        cache.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(entries))
        aside.replace(cache)
