"""Days: how many rows each has, and a world that is another one every day.

Shapes: U users, I items, T tasks, d latent dimensions.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.prepare.synthetic.config import SyntheticConfig
from stem_torchrec.prepare.synthetic.world import Floats, World, draw_users, solved

_FIRST_DAY = date(2024, 1, 1)
_PRESENT_SHARE = 0.5


def files_of(split: str, config: SyntheticConfig) -> list[tuple[str, int]]:
    """Name and rows of each file of a split, in the order of time."""
    num_rows = int(getattr(config, f"{split}_rows"))
    if split != "train" or config.num_days is None:
        return [("part-0.parquet", num_rows)]
    sizes = np.diff(np.arange(config.num_days + 1) * num_rows // config.num_days)
    days = [_FIRST_DAY + timedelta(days=day) for day in range(config.num_days)]
    return [
        (f"date={day}/part-0.parquet", int(size)) for day, size in zip(days, sizes, strict=True)
    ]


def worlds_of(world: World, config: SyntheticConfig) -> Iterator[World]:
    """The world of every file in the order of time: the training days, then valid, then test."""
    return _drifting(world, config) if config.world == "drift" else repeat(world)


def _drifting(first: World, config: SyntheticConfig) -> Iterator[World]:
    """Users forget what they wanted, and users and items come and go.

    A preference is that of the day before times ``day_correlation`` plus a fresh part, so its
    variance stays and its correlation with the first day's falls geometrically. On each day half
    of the users and half of the items occur; by the day of the test split all have occurred. What
    features tell stays that of the first day. Base rates are met on every day.
    """
    assert config.num_days is not None
    last_day = config.num_days + 1
    shared, task = first.user_shared, first.user_task
    for day in range(last_day + 1):
        rng = np.random.default_rng([config.seed, 5, day])
        if day > 0:
            fresh_shared, fresh_task = draw_users(rng, first.user_clusters, config)
            shared = _aged(shared, fresh_shared, config.day_correlation)
            task = _aged(task, fresh_task, config.day_correlation)
        present = [
            _present(side_cdf, np.random.default_rng([config.seed, 6, side]), day / last_day)
            for side, side_cdf in enumerate((first.user_cdf, first.item_cdf))
        ]
        of_day = replace(
            first, user_shared=shared, user_task=task, user_cdf=present[0], item_cdf=present[1]
        )
        yield solved(of_day, config.ratios, rng)


def _aged(before: Floats, fresh: Floats, correlation: float) -> Floats:
    return np.float32(correlation) * before + np.float32((1 - correlation**2) ** 0.5) * fresh


def _present(
    cdf: NDArray[np.float64], rng: np.random.Generator, time: float
) -> NDArray[np.float64]:
    """The cumulated probabilities of those who are there at a time between 0 and 1: a window that
    slides over all of them in a random order."""
    size = max(1, round(_PRESENT_SHARE * len(cdf)))
    start = round(time * (len(cdf) - size))
    there = np.zeros(len(cdf), dtype=np.bool_)
    there[rng.permutation(len(cdf))[start : start + size]] = True
    cumulated = np.cumsum(np.where(there, np.diff(cdf, prepend=0.0), 0.0))
    return cumulated / cumulated[-1]
