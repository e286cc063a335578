"""What a step's balancing looked like, per task, on device.

T tasks. No host sync: the caller reads the tensors where it logs.
"""

import torch
from torch import Tensor

from stem_torchrec.balancing.cosine import cosines, gradient_norms
from stem_torchrec.balancing.rule import Balanced


def balance_metrics(gram: Tensor, balanced: Balanced) -> dict[str, Tensor]:
    """Metrics of one step from its Gram matrix (T, T), before anything was left out of it.

    Returns:
        ``weight`` (T,) multipliers α; ``gradient_norm`` (T,) of the global batch, NaN or inf where
        the gradient is; ``cosine`` (T,) mean cosine to the other active tasks, NaN for a task that
        is left out or alone; ``conflict_share`` () share of the pairs of active tasks whose cosine
        is negative, NaN without pairs; ``fallback`` () 1 where the rule gave nothing usable. All
        float32.
    """
    active = balanced.active
    pairs = active.unsqueeze(0) & active.unsqueeze(1)
    pairs = pairs & ~torch.eye(len(active), dtype=torch.bool, device=active.device)
    gram = gram.detach().double()
    cosine = cosines(gram)
    conflicts = (pairs & (cosine < 0)).sum() / pairs.sum()
    return {
        **rule_metrics(balanced),
        "gradient_norm": gradient_norms(gram).float(),
        "cosine": (torch.where(pairs, cosine, 0.0).sum(dim=1) / pairs.sum(dim=1)).float(),
        "conflict_share": conflicts.float(),
    }


def rule_metrics(balanced: Balanced) -> dict[str, Tensor]:
    """``weight`` and ``fallback`` alone: what is known where no Gram matrix is made."""
    return {"weight": balanced.multipliers, "fallback": balanced.fallback.float()}
