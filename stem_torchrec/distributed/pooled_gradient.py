"""What reaches the tables: the gradient of the pooled features, clipped, with their L2 decay.

FBGEMM's own weight decay is silently ignored on CPU and differs between optimizers; here it is
one definition for every optimizer, kernel and sharding type.
"""

from torch import Tensor


class PooledGradient:
    """From the gradient g of pooled features e to the one that goes on into their tables.

    With B rows in the local batch and W ranks the global batch's gradient per element becomes
    clip(g, +-max_gradient) + weight_decay / B * e: the gradient of the mean over samples of
    weight_decay / 2 * |e|^2, so that a row decays in proportion to how often it is looked up.

    Args:
        max_gradient: bound of each element, None for none.
        weight_decay: L2 factor, 0 for none.
        world_size: W; a rank's gradient is W times its share of the global batch's.
    """

    def __init__(self, max_gradient: float | None, weight_decay: float, world_size: int) -> None:
        self._bound = max_gradient * world_size if max_gradient is not None else None
        self._weight_decay = weight_decay

    def __call__(self, gradient: Tensor, features: Tensor) -> Tensor:
        """(B, C_o) each."""
        if self._bound is not None:
            gradient = gradient.clamp(-self._bound, self._bound)
        if self._weight_decay:
            decay = self._weight_decay / len(features)
            gradient = gradient.add(features.detach(), alpha=decay)
        return gradient
