"""What decides the result of preparing: work that was interrupted serves an equal request only."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
from pydantic import BaseModel

from stem_torchrec import __version__
from stem_torchrec.data.building import Request
from stem_torchrec.data.working_database import Resources


def request_of(files: Iterable[Path], options: Resources, **described: BaseModel) -> Request:
    """The request as JSON; ``described`` are further models by name.

    Memory and threads do not change a result. That a file is the same is told by its path, size and
    time of change.
    """
    stamps: dict[str, Any] = {}
    for path in files:
        found = path.stat()
        stamps[str(path.resolve())] = [found.st_size, found.st_mtime_ns]
    return {
        "sources": stamps,
        "options": options.model_dump(mode="json", exclude={*Resources.model_fields}),
        **{name: model.model_dump(mode="json") for name, model in described.items()},
        "versions": [__version__, duckdb.__version__],
    }
