"""Industrial-scale training of multi-task recommenders on TorchRec.

    import stem_torchrec as st

    run = st.train("mine.yaml", train={"epochs": 2})
    run.evaluate("test")["auc"]
    probabilities = run.predict("test")

Public are the names in ``__all__`` here, in ``stem_torchrec.nn`` and in
``stem_torchrec.balancing``; other modules may change without notice. A name is imported when it is
first used, so that ``stem_torchrec.nn`` needs no more than torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stem_torchrec import balancing, nn
    from stem_torchrec.data.reader import ParquetReader
    from stem_torchrec.data.schema import Schema
    from stem_torchrec.errors import UserError
    from stem_torchrec.training.run import Run, load_run
    from stem_torchrec.training.start import train

__version__ = "0.1.0"

__all__ = [
    "ParquetReader",
    "Run",
    "Schema",
    "UserError",
    "__version__",
    "balancing",
    "load_run",
    "nn",
    "train",
]

_MODULES = {
    "ParquetReader": "stem_torchrec.data.reader",
    "Run": "stem_torchrec.training.run",
    "Schema": "stem_torchrec.data.schema",
    "UserError": "stem_torchrec.errors",
    "load_run": "stem_torchrec.training.run",
    "train": "stem_torchrec.training.start",
}


def __getattr__(name: str) -> Any:
    if name in ("balancing", "nn"):
        return import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
