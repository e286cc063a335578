"""What a package defines, by name: one file more is one more of them."""

import importlib
import pkgutil
from typing import Protocol, TypeVar


class Named(Protocol):
    """Its class says by what name it is known."""

    name: str


N = TypeVar("N", bound=Named)


def named_in(package: str, base: type[N]) -> dict[str, type[N]]:
    """Name -> subclass of ``base``, of all that the modules of a package define.

    Imports each module; the order is that of the modules' names. A subclass without a ``name`` of
    its own is a base of others, not one of them.

    Raises:
        ValueError: two classes have the same name.
    """
    found: dict[str, type[N]] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        members = vars(importlib.import_module(f"{package}.{module.name}"))
        for kind in members.values():
            if not (isinstance(kind, type) and issubclass(kind, base) and "name" in vars(kind)):
                continue
            if kind.__module__ != members["__name__"]:
                continue
            if kind.name in found:
                raise ValueError(f"{kind.name!r} is the name of {kind} and of {found[kind.name]}")
            found[kind.name] = kind
    return found
