"""A class of the user's own, named by where it can be imported: ``my_pkg.my_file:MyRule``."""

import importlib
import os
import re
import sys
import traceback
from typing import Any

FORM = "my_pkg.my_file:MyClass"
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_import_path(name: str) -> bool:
    """Whether the name has the form ``my_pkg.my_file:MyClass``."""
    return _PATH.fullmatch(name) is not None


def import_class(path: str, base: type[Any]) -> type[Any]:
    """The subclass of ``base`` at an import path.

    Modules are looked for as Python does and then in the working directory, in which commands are
    usually started. Every process of a run imports it anew, so it has to be there for all of them.

    Raises:
        ValueError: the import fails, the module has no such name, or it is no subclass of
            ``base`` that can be made.
    """
    module_name, _, name = path.partition(":")
    module = _imported(path, module_name)
    found = getattr(module, name, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if _is_kind(value, base)]
        there = ", ".join(classes) or "none"
        raise ValueError(
            f"{path!r}: {module_name} has no {name}; subclasses of {base.__name__} in it: {there}"
        )
    if not _is_kind(found, base):
        allowed = f"a subclass of {base.__module__}.{base.__qualname__}"
        raise ValueError(f"{path!r} is {_what(found)}; allowed: {allowed}")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise ValueError(f"{path!r} does not define {', '.join(missing)}")
    return found


def _imported(path: str, module_name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename != __file__ and "importlib" not in frame.filename
        ]
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        hint = ""
        if isinstance(error, ModuleNotFoundError) and not frames:
            hint = f"; looked for among packages, in PYTHONPATH and the working directory {here}"
        raise ValueError(
            f"{path!r}: the import fails: {type(error).__name__}: {error}{where}{hint}"
        ) from error


def _is_kind(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base


def _what(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
