"""Whole tables where they fit, row shards where one is too large: the choice for every table."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from stem_torchrec.distributed.constraints import World
from stem_torchrec.distributed.placement import Item, Loads, Placement, place
from stem_torchrec.distributed.table_options import Kind, TableOptions, Way

# A plan is even if the fullest rank holds at most this many times the mean.
LARGEST_OVER_MEAN = 1.2
# Of the placements within these and that bound the one with the least busy rank is taken.
_EVEN = (1.1, 1.05, 1.15, 1.2)
# Rounds in which tables of the fullest ranks are divided; not every one makes the fullest emptier.
_ROUNDS = 30
_PATIENCE = 5
# Share of all ranks' memory up to which tables are kept in it, before any is given a rank.
_FULL = 0.95


class NoRoom(Exception):
    """The fullest rank of the best plan has more than it has room for."""


class Found(NamedTuple):
    """Attributes:
    ways: how each table is sharded.
    placement: the ranks, in the order of ``ways``.
    """

    ways: dict[str, Way]
    placement: Placement


def search(options: TableOptions, world: World, room: Loads) -> Found:
    """A plan in the memory of the ranks, as even as the options allow.

    Tables start whole, in device memory. Of those that are larger than a rank's even part, all of a
    kind are divided by rows; what then still is on too full a rank is divided table by table. If
    device memory does not suffice, the kinds with the most bytes per millisecond go to the host.

    Args:
        room: (2,), device and host bytes of a rank.

    Raises:
        NoRoom: says what is missing.
    """
    return _Search(options, world, room).run()


class _Search:
    def __init__(self, options: TableOptions, world: World, room: Loads) -> None:
        self.options = options
        self.world = world
        self.room = room
        self.memory = 0 if world.device == "cuda" else 1  # the column of loads that is to be even
        first = {kind: options.first(kind) for kind in dict.fromkeys(options.kinds.values())}
        self.ways = {table: first[kind] for table, kind in options.kinds.items()}

    def run(self) -> Found:
        while True:
            self._leave_room()
            self._divide_large_kinds()
            found = self._even()
            if (found.placement.loads[:, :2] <= self.room).all():
                return self._fastest(found)
            if not self._move_to_host():
                raise NoRoom(self._missing(found.placement.loads))

    def _leave_room(self) -> None:
        """Move kinds to the host until all ranks together hold what is left."""
        while self._mean()[0] > _FULL * self.room[0] and self._move_to_host():
            pass

    def _divide_large_kinds(self) -> None:
        """Divide kinds whose shards are larger than a rank's even part, or than its room."""
        while True:
            limit = self.room.copy()
            limit[self.memory] = min(limit[self.memory], self._mean()[self.memory])
            smaller = {}
            for kind, way in self._by_kind().items():
                if (way.item.loads[:, :2] > limit).any():
                    smaller[kind] = self.options.smaller(kind, way)
            divided = {kind: way for kind, way in smaller.items() if way is not None}
            if not divided:
                return
            for table, kind in self.options.kinds.items():
                self.ways[table] = divided.get(kind, self.ways[table])

    def _even(self) -> Found:
        """Divide tables of ranks that hold too much, as long as the fullest gets emptier."""
        found = best = self._place(self.ways)
        waiting = 0
        for _ in range(_ROUNDS):
            divided = self._divide_on_full_ranks(found)
            if not divided or waiting == _PATIENCE:
                break
            found = self._place(found.ways | divided)
            waiting += 1
            if self._fullest(found) < self._fullest(best):
                best, waiting = found, 0
        return best

    def _fastest(self, found: Found) -> Found:
        """The same tables on other ranks where that makes the busiest one less busy."""

        def rank(other: Found) -> tuple[bool, float]:
            loads = other.placement.loads
            fits = (loads[:, :2] <= self.room).all() and self._fullest(other) <= limit
            return not fits, float(loads[:, 2].max())

        mean = float(found.placement.loads[:, self.memory].mean())
        limit = max(LARGEST_OVER_MEAN * mean, self._fullest(found))
        others = (self._place(found.ways, even) for even in _EVEN[1:])
        return min((found, *others), key=rank)

    def _divide_on_full_ranks(self, found: Found) -> dict[str, Way]:
        """Of each rank that is too full, the table that comes closest to what is too much."""
        held = found.placement.loads[:, self.memory]
        limit = min(LARGEST_OVER_MEAN * held.mean(), self.room[self.memory])
        excess = dict(enumerate(held - held.mean()))
        candidates: dict[int, list[tuple[float, str, Way]]] = {
            rank: [] for rank in np.flatnonzero(held > limit).tolist()
        }
        for (table, way), ranks in zip(found.ways.items(), found.placement.ranks, strict=True):
            if len(ranks) != 1 or ranks[0] not in candidates:
                continue
            smaller = self.options.smaller(self.options.kinds[table], way)
            if smaller is not None:
                distance = abs(way.item.loads[0, self.memory] - excess[ranks[0]])
                candidates[ranks[0]].append((float(distance), table, smaller))
        nearest = (
            min(tables, key=lambda each: each[:2]) for tables in candidates.values() if tables
        )
        return {table: way for _, table, way in nearest}

    def _move_to_host(self) -> bool:
        """Move the kind with the most device bytes per millisecond; whether there was one."""
        found: list[tuple[float, Kind, Way]] = []
        for kind, way in self._by_kind().items():
            hosted = self.options.on_host(kind, way)
            if hosted is not None:
                device, _, time = way.item.loads.sum(axis=0)
                found.append((device / max(time, 1e-9), kind, hosted))
        if not found:
            return False
        _, moved, way = max(found, key=lambda each: each[0])
        for table, kind in self.options.kinds.items():
            if kind == moved:
                self.ways[table] = way
        return True

    def _by_kind(self) -> dict[Kind, Way]:
        return {self.options.kinds[table]: way for table, way in self.ways.items()}

    def _mean(self) -> Loads:
        """(3,), the loads of all tables over the number of ranks."""
        number = Counter(self.options.kinds.values())
        sums = [number[kind] * way.item.loads.sum(axis=0) for kind, way in self._by_kind().items()]
        return np.sum(sums, axis=0) / self.world.size

    def _place(self, ways: dict[str, Way], even: float = _EVEN[0]) -> Found:
        items: list[Item] = [way.item for way in ways.values()]
        per_node = min(self.world.per_node, self.world.size)
        return Found(ways, place(items, self.world.size, per_node, self.room, even))

    def _fullest(self, found: Found) -> float:
        return float(found.placement.loads[:, self.memory].max())

    def _missing(self, loads: Loads) -> str:
        gib = 1024**3
        device, host = loads[:, :2].max(axis=0) / gib
        room = self.room / gib
        return (
            f"the fullest rank would hold {device:,.3f} GiB of device and {host:,.3f} GiB of host "
            f"memory, where there is room for {room[0]:,.3f} and {room[1]:,.3f}"
        )
