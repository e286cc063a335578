"""Whose a parameter is: which index of which dimension belongs to which task or expert.

Modules say it of themselves, so that weights can be told apart by task wherever they are looked
at: when a model starts from another one's weights, or in an analysis.
"""

import abc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn

SHARED = "shared"
"""The owner of tables and experts that belong to no task."""

Owners = Mapping[str, Sequence[str]]
"""Owner of tables (``shared`` or a task) -> names of the features it has tables for."""

Labels = tuple[str, ...]
"""One label per index of a dimension: an owner, or ``OWNER:k`` for the k-th of several."""


class Ownership(NamedTuple):
    """Whose one parameter is.

    Attributes:
        role: what the parameter does, whoever has it. It is the parameter's name, unless several
            parameters do the same for different owners.
        owner: to whom all of it belongs; None if to several or to nobody in particular.
        dims: dimension -> whose each of its indices is; without the dimensions that belong to
            nobody in particular.

    >>> from stem_torchrec.nn import Towers
    >>> towers = Towers(["click", "like"], 8, (4,))
    >>> ownership(towers)["mlp.hidden.0.weight"]
    Ownership(role='mlp.hidden.0.weight', owner=None, dims={0: ('click', 'like')})
    """

    role: str
    owner: str | None = None
    dims: Mapping[int, Labels] = {}


class Owned(nn.Module, abc.ABC):
    """A module that says whose its parameters are.

    Attributes:
        owner: to whom all parameters in it belong, those of its children too; None if it does not
            say. In an ``nn.ModuleList`` the owner then takes the place of the index.

    >>> import torch
    >>> class Bias(Owned):
    ...     def __init__(self, tasks):
    ...         super().__init__()
    ...         self.tasks = tuple(tasks)
    ...         self.bias = nn.Parameter(torch.zeros(3, len(tasks)))
    ...
    ...     def owned_dims(self):
    ...         return {"bias": {1: self.tasks}}
    >>> ownership(Bias(["click", "like"]))
    {'bias': Ownership(role='bias', owner=None, dims={1: ('click', 'like')})}
    """

    owner: str | None = None

    @abc.abstractmethod
    def owned_dims(self) -> dict[str, dict[int, Labels]]:
        """Of the module's own parameters, by name: dimension -> labels of its indices."""


def ownership(module: nn.Module) -> dict[str, Ownership]:
    """Whose every parameter of a module is, by the parameter's name.

    >>> ownership(nn.Linear(2, 1))["bias"]
    Ownership(role='bias', owner=None, dims={})
    """
    return dict(_walk(module, "", "", None))


def numbered(owners: Sequence[str]) -> Labels:
    """Labels of things of which an owner may have several.

    >>> numbered(["shared", "shared", "click"])
    ('shared:0', 'shared:1', 'click:0')
    """
    seen: Counter[str] = Counter()
    labels = []
    for owner in owners:
        labels.append(f"{owner}:{seen[owner]}")
        seen[owner] += 1
    return tuple(labels)


def _walk(
    module: nn.Module, name: str, role: str, owner: str | None
) -> Iterator[tuple[str, Ownership]]:
    dims: dict[str, dict[int, Labels]] = {}
    if isinstance(module, Owned):
        owner, dims = module.owner or owner, module.owned_dims()
    for part, _ in module.named_parameters(recurse=False):
        yield name + part, Ownership(role + part, owner, dims.get(part, {}))
    for part, child in module.named_children():
        replaced = isinstance(module, nn.ModuleList) and isinstance(child, Owned) and child.owner
        yield from _walk(child, f"{name}{part}.", role if replaced else f"{role}{part}.", owner)
