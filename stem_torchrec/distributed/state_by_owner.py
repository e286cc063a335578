"""The state of tables as one table per owner, however the owners' columns lie.

Checkpoints, initial values and analyses know tables ``owner__table`` alone, so that they are the
same for every layout. What an owner has of a wide table is a view of its columns: writing it writes
the table. What an optimizer keeps per row and not per column (row-wise Adagrad) belongs to all
owners of a row: each gets a copy, and the mean over owners is taken back. That mean is what the
wide table's own accumulator would have been: the mean square of a row's gradient is the mean over
its owners of theirs.

D embedding dimension of a table, n owners of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.nn.parallel import DistributedDataParallel

from stem_torchrec.distributed.layout import Table
from stem_torchrec.distributed.shards import block, copied, local_tensors, write

State = Mapping[str, Mapping[str, Any]]
"""Of an optimizer: parameter -> name -> value."""


class Tables(Protocol):
    """A module whose child ``tables`` is a collection of the tables in ``layout``."""

    layout: Sequence[Table]
    tables: nn.Module


def name_by_owner(module: Any) -> None:
    """Let the state of a module of ``Tables`` have a table per owner, in saving and loading."""
    module.register_state_dict_post_hook(_split_tables)
    module.register_load_state_dict_pre_hook(_join_tables)


def _split_tables(module: Tables, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for table, key in _wide_tables(module, prefix):
        wide = state.pop(key)
        for name, place in table.by_owner.items():
            state[_renamed(key, table, name)] = _columns(wide, table, place)


def _join_tables(module: Tables, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _forget_cached_rows(module.tables)
    tables = module.tables.state_dict(prefix=f"{prefix}tables.")
    for table, key in _wide_tables(module, prefix):
        keys = {_renamed(key, table, name): place for name, place in table.by_owner.items()}
        if keys.keys() <= state.keys():  # else the module itself says what is missing
            for name, place in keys.items():
                write(_columns(tables[key], table, place), local_tensors(state.pop(name)))
            state[key] = tables[key]


def _forget_cached_rows(tables: nn.Module) -> None:
    # Those in a cache (UVM caching) are of the old values. Asking for the state would write them
    # over what has been read into its views.
    for lookup in getattr(tables, "_lookups", ()):
        while isinstance(lookup, DistributedDataParallel):
            lookup = lookup.module
        lookup.purge()


def _wide_tables(module: Tables, prefix: str) -> Iterator[tuple[Table, str]]:
    for table in module.layout:
        if table.is_wide:
            yield table, f"{prefix}tables.embedding_bags.{table.name}.weight"


class OptimizerByOwner:
    """The state of tables' optimizers, by owner and back."""

    def __init__(self, layout: Sequence[Table]) -> None:
        self._wide = {table.name: table for table in layout if table.is_wide}

    def split(self, state: State) -> dict[str, Any]:
        """One parameter per owner. Elements of columns are views, all else is copied."""
        found: dict[str, Any] = {}
        for parameter, values in state.items():
            table = self._table(parameter)
            if table is None:
                found[parameter] = values
                continue
            for name, place in table.by_owner.items():
                found[_renamed(parameter, table, name)] = {
                    _renamed(key, table, name): _part(value, table, place)
                    for key, value in values.items()
                }
        return found

    def join(self, state: State, wide: State) -> dict[str, Any]:
        """The inverse of ``split``; writes into the values of ``wide``, which are the optimizer's.

        Raises:
            ValueError: the state of an owner is missing.
        """
        found = dict(state)
        for parameter, values in wide.items():
            table = self._table(parameter)
            if table is None:
                continue
            keys = {name: _renamed(parameter, table, name) for name in table.by_owner}
            if missing := keys.values() - found.keys():
                raise ValueError(f"state: {sorted(missing)[0]} is missing")
            owners = {name: found.pop(key) for name, key in keys.items()}
            for key, value in values.items():
                parts = [of_owner[_renamed(key, table, n)] for n, of_owner in owners.items()]
                _join(value, table, parts)
            found[parameter] = values
        return found

    def _table(self, parameter: str) -> Table | None:
        return self._wide.get(parameter.removesuffix(".weight").rsplit(".", 1)[-1])


def _renamed(key: str, table: Table, name: str) -> str:
    return key.replace(table.name, name)


def _columns(wide: Tensor, table: Table, place: int) -> Tensor:
    """(rows, D): a view."""
    return block(wide, (0, table.rows), (place * table.dim, (place + 1) * table.dim))


def _has_columns(value: Tensor, table: Table) -> bool:
    return len(value.size()) == 2 and value.size()[1] == table.width


def _part(value: Any, table: Table, place: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    if _has_columns(value, table):
        return _columns(value, table, place)
    return copied(_rows(value, table, place))


def _join(value: Any, table: Table, parts: Sequence[Any]) -> None:
    if not isinstance(value, Tensor):
        return
    if _has_columns(value, table):
        for place, part in enumerate(parts):
            write(_columns(value, table, place), local_tensors(part))
        return
    num_shards = _num_column_shards(value, table)
    size = len(parts) // num_shards
    for first in range(0, len(parts), size):
        owners = zip(*map(local_tensors, parts[first : first + size]), strict=True)
        write(_rows(value, table, first), [_mean(of_shard) for of_shard in owners])


def _rows(value: Tensor, table: Table, place: int) -> Tensor:
    """What an owner's rows have in common with those of the others in the same column shard.

    TorchRec puts the accumulators of column shards one after the other.
    """
    if not isinstance(value, ShardedTensor):
        return value
    start = place * _num_column_shards(value, table) // len(table.owners) * table.rows
    return block(value, (start, start + table.rows))


def _num_column_shards(value: Tensor, table: Table) -> int:
    if not isinstance(value, ShardedTensor):
        return 1
    number = value.size()[0] // table.rows
    assert len(table.owners) % number == 0, "a column shard holds whole owners, see plan.py"
    return number


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Of equal values it is that value, bit for bit."""
    return torch.stack([value.double() for value in values]).mean(dim=0).to(values[0].dtype)
