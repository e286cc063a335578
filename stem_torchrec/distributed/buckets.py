"""DDP whose gradient buckets are the same in every step, the first of a process included.

DDP joins the gradients of a backward in buckets, each summed over ranks at once, and after its
first backward it forms them anew. The place of a gradient in its bucket decides in which order more
than two ranks are summed, so a run's first step after a resume would round otherwise than the same
step of a run that was not stopped.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper


class SettledBuckets(DefaultDataParallelWrapper):
    """Wraps the dense part in DDP and lets it form its buckets before the first step."""

    def wrap(self, dmp: nn.Module, *arguments: Any) -> None:
        super().wrap(dmp, *arguments)
        for module in dmp.modules():
            if isinstance(module, DistributedDataParallel) and not module.static_graph:
                settle(module)


def settle(module: DistributedDataParallel) -> None:
    """Form the buckets by one backward that reaches every weight, the last one first. Collective.

    That is the order in which gradients come where modules are defined as they are used. Weights
    and gradients are left as they were.
    """
    weights = [
        weight
        for name, weight in module.module.named_parameters()
        if weight.requires_grad and name not in module.parameters_to_ignore
    ]
    module.reducer.prepare_for_backward([])
    torch.stack([weight.sum() for weight in weights]).sum().backward()
    module.reducer._rebuild_buckets()
    for weight in weights:
        weight.grad = None
