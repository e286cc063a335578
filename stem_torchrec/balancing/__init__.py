"""Balancing of the tasks' gradients of what they share: plain PyTorch, for any module.

T tasks with gradients g_t of a shared value. ``Balancer`` (and ``MultiBalance`` and others, which
are balancers by one rule) parts the value into tasks and combines their gradients in the ordinary
backward; a ``Rule`` maps the Gram matrix G_st = ⟨g_s, g_t⟩ to the multipliers of Σ_t α_t g_t.
"""

from stem_torchrec.balancing.balancer import (
    Balancer,
    CaGrad,
    Equal,
    Mgda,
    MultiBalance,
    PcGrad,
    Static,
    TorchJd,
)
from stem_torchrec.balancing.rule import Balanced, Rule, Situation, State, balance
from stem_torchrec.nn.options import Options

__all__ = [
    "Balanced",
    "Balancer",
    "CaGrad",
    "Equal",
    "Mgda",
    "MultiBalance",
    "Options",
    "PcGrad",
    "Rule",
    "Situation",
    "State",
    "Static",
    "TorchJd",
    "balance",
]
