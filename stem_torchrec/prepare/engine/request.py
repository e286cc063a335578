"""What decides the result of preparing: work that was interrupted serves an equal request only."""

from collections.abc import Iterable
from pathlib import Path

import duckdb
from pydantic import BaseModel

from stem_torchrec import __version__
from stem_torchrec.prepare.engine.building import Request
from stem_torchrec.prepare.engine.options import Resources


def request_of(files: Iterable[Path], options: Resources, **described: BaseModel) -> Request:
    """The request as JSON; ``described`` are further models by name.

    Memory and threads do not change a result. That a file is the same is told by its name, size and
    time of change; its folder is another each time that it comes from an object store.
    """
    found = [(path.name, path.stat()) for path in files]
    return {
        "sources": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found],
        "options": options.model_dump(mode="json", exclude={*Resources.model_fields}),
        **{name: model.model_dump(mode="json") for name, model in described.items()},
        "versions": [__version__, duckdb.__version__],
    }
