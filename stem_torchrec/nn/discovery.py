"""What a package defines, by name: one file more is one more of them."""

import importlib
import pkgutil
from typing import Any


def named_in(package: str, base: type[Any]) -> dict[str, type[Any]]:
    """Name -> subclass of ``base``, of all that the modules of a package define.

    The class attribute ``name`` is the name; a subclass without one of its own is a base of
    others, not one of them. Imports each module; the order is that of the modules' names.

    Raises:
        ValueError: two classes have the same name.
    """
    found: dict[str, type[Any]] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        members = vars(importlib.import_module(f"{package}.{module.name}"))
        for kind in members.values():
            if not _is_defined_in(members["__name__"], kind, base):
                continue
            if kind.name in found:
                raise ValueError(f"{kind.name!r} is the name of {kind} and of {found[kind.name]}")
            found[kind.name] = kind
    return found


def _is_defined_in(module: str, kind: Any, base: type[Any]) -> bool:
    is_named = isinstance(kind, type) and issubclass(kind, base) and "name" in vars(kind)
    return is_named and kind.__module__ == module
