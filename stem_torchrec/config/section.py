"""What every section of the config has in common, and the bounds of its numbers.

Bounds are far beyond any use: they keep a slip of the keyboard from being a day of waiting or a
message of the allocator.
"""

from stem_torchrec.config.frozen import Frozen

MAX_SEED = (1 << 63) - 1
MAX_STEPS = 10**15
MAX_ROWS = 1 << 30
"""Rows of a batch."""
MAX_SECONDS = 366 * 24 * 3600
MAX_GIB = 1_000_000
MAX_RATE = 1e6
"""Learning rates, weights and factors; float32 has room for their products."""
MAX_GRADIENT = 1e30


class Section(Frozen):
    """Base of all sections."""
