"""Balancing in anybody's PyTorch script: part the shared value into tasks, then train as usual.

B rows of the local batch, T tasks.
"""

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.balancing.applied_rule import AppliedRule
from stem_torchrec.balancing.fork import forked
from stem_torchrec.balancing.gradients import TaskGradients
from stem_torchrec.balancing.rules.cagrad import CaGradRule
from stem_torchrec.balancing.rules.equal import EqualRule
from stem_torchrec.balancing.rules.mgda import MgdaRule
from stem_torchrec.balancing.rules.multi_balance import MultiBalanceRule
from stem_torchrec.balancing.rules.pcgrad import PcGradRule
from stem_torchrec.balancing.rules.static import StaticRule
from stem_torchrec.balancing.rules.torchjd import TorchJdRule


class Balancer(AppliedRule):
    """Combines the tasks' gradients of what they share, as a rule says, in one ordinary backward.

        shared_1, shared_2 = balancer.fork(encoder(x))
        (loss_1(head_1(shared_1)) + loss_2(head_2(shared_2))).backward()

    What lies above the fork, the heads, gets each task's own gradient; what lies below it, the
    encoder, gets the one of Σ_t α_t L_t, with multipliers α_t of the gradients g_t of the forked
    value.

    - Each backward through a fork is one step of the rule; part once per step, and call backward
      once, on the sum of the losses. With gradients accumulated over several batches each of them
      is balanced by itself, or, with ``gram_every``, by the multipliers of an earlier one.
    - A task whose loss is not in the backward gets multiplier 0, and the rule's memory of it stays.
      One with a gradient that is not finite is left out in the same way.
    - In ``eval()``, under ``no_grad`` and where the shared value needs no gradient the parts are
      plainly the value.
    - Gram matrix and rule compute in float32 and float64 whatever the gradients' precision.
    - With DistributedDataParallel: a rank's loss is the mean over its own rows, as usual, and
      every rank's backward reaches the fork, since it reduces the Gram matrix over
      ``process_group``. Give it ``torch.distributed.new_group()`` for itself. All ranks get the
      same multipliers, bit for bit.
    - ``state_dict`` holds what goes on: the rule's memory, the multipliers, the number of steps.

    Args:
        rule: of ``stem_torchrec.balancing``, or your own subclass of ``Rule``.
        num_tasks: T.
        process_group: ranks whose batches make up the global one; None for this process alone.
        gram_every: steps from one Gram matrix to the next; between them multipliers stay.

    Raises:
        ValueError: an argument is out of bounds, or the rule does not fit the number of tasks.

    >>> import torch
    >>> from stem_torchrec.balancing import Balancer
    >>> from stem_torchrec.balancing.rules.mgda import MgdaRule
    >>> balancer = Balancer(MgdaRule(), num_tasks=2)
    >>> shared = torch.ones(1, 2, requires_grad=True)
    >>> first, second = balancer.fork(shared)
    >>> (first[0, 0] + 2.0 * second[0, 1]).backward()
    >>> balancer.weights
    tensor([0.8000, 0.2000])
    >>> shared.grad
    tensor([[0.8000, 0.4000]])
    """

    def fork(self, shared: Tensor) -> tuple[Tensor, ...]:
        """T views of ``shared`` (B, ...), one for each task's part of the model.

        They share memory: change none of them in place.
        """
        if not (self.training and torch.is_grad_enabled() and shared.requires_grad):
            return (shared,) * self.num_tasks
        if self.multipliers.device != shared.device:
            self.to(shared.device)
        return forked(self._weigh, self.num_tasks, shared)[0].unbind()

    def _weigh(self, by_task: list[TaskGradients]) -> Tensor:
        if self.is_due:
            gradients = by_task[0]
            self.set_from_ranks(
                gradients.inner_products() if self.needs_gram else torch.diag(gradients.sizes())
            )
            self.settle()
        self._losses = None
        self._step += 1
        return self.multipliers

    def get_extra_state(self) -> int:
        return self._step

    def set_extra_state(self, state: int) -> None:
        self._step = state


class _Named(Balancer):
    """A balancer by one of the package's rules; the rule's options are keyword arguments."""

    rule_type: ClassVar[Any]

    def __init__(
        self,
        num_tasks: int,
        *,
        process_group: dist.ProcessGroup | None = None,
        gram_every: int = 1,
        seed: int = 0,
        **options: Any,
    ) -> None:
        rule = self.rule_type(self.rule_type.options_type(**options), seed=seed)
        super().__init__(rule, num_tasks, process_group=process_group, gram_every=gram_every)


class Equal(_Named):
    """Plain sums of the gradients: what training does without a balancer.

    >>> Equal(num_tasks=3).weights
    tensor([1., 1., 1.])
    """

    rule_type = EqualRule


class MultiBalance(_Named):
    """Smoothed min-norm weights, by ``MultiBalanceRule`` (MultiBalance, Meta, 2024).

    Args:
        gamma: share of the newest norm in the smoothed one, (0, 1].
        rho: pull of the average gradient, >= 0.
        beta: step of the weights; 1 / largest row sum if None.
        matrix: ``cosine`` or ``gram``.
        floor: least weight of a task as a share of the equal one, [0, 1).

    >>> import torch
    >>> balancer = MultiBalance(num_tasks=2, gamma=0.1)
    >>> encoder, head_1, head_2 = (torch.nn.Linear(3, 3) for _ in range(3))
    >>> shared_1, shared_2 = balancer.fork(encoder(torch.randn(8, 3)))
    >>> (head_1(shared_1).square().mean() + head_2(shared_2).abs().mean()).backward()
    >>> balancer.weights.shape, balancer.cosines.shape
    (torch.Size([2]), torch.Size([2, 2]))
    """

    rule_type = MultiBalanceRule


class Mgda(_Named):
    """The exact min-norm weights of every step, by ``MgdaRule`` (Sener & Koltun, NeurIPS 2018).

    Args:
        normalization: ``none``, ``l2``, ``loss`` or ``loss+``; the last two need ``observe``.

    >>> import torch
    >>> balancer = Mgda(num_tasks=2, normalization="loss")
    >>> shared = torch.ones(2, requires_grad=True)
    >>> first, second = balancer.fork(shared)
    >>> losses = first[0], second[1]
    >>> balancer.observe(losses)
    >>> sum(losses).backward()
    >>> balancer.weights
    tensor([0.5000, 0.5000])
    """

    rule_type = MgdaRule


class PcGrad(_Named):
    """Each gradient loses its components against the others, by ``PcGradRule`` (NeurIPS 2020).

    >>> PcGrad(num_tasks=2, seed=1).weights
    tensor([1., 1.])
    """

    rule_type = PcGradRule


class CaGrad(_Named):
    """The direction near the average that helps the worst-off task, by ``CaGradRule``.

    Args:
        cagrad_c: distance from the average gradient, [0, 1).

    >>> CaGrad(num_tasks=2, cagrad_c=1.0)
    Traceback (most recent call last):
    ValueError: cagrad_c: 1.0; allowed: a finite number, at least 0, below 1
    """

    rule_type = CaGradRule


class Static(_Named):
    """Weights that you choose, by ``StaticRule``.

    Args:
        weights: one per task, >= 0.

    >>> import torch
    >>> shared = torch.ones(2, requires_grad=True)
    >>> first, second = Static(num_tasks=2, weights=(1.0, 0.5)).fork(shared)
    >>> (first.sum() + second.sum()).backward()
    >>> shared.grad
    tensor([1.5000, 1.5000])
    """

    rule_type = StaticRule


class TorchJd(Balancer):
    """A Gramian weighting of the TorchJD package, by ``TorchJdRule``; waits for the device.

    Args:
        aggregator: of ``torchjd.aggregation``, such as ``UPGrad``.
        torchjd_options: keyword arguments of it.

    Raises:
        ValueError: TorchJD, or a solver it needs, is not installed; an unknown name or option.

    >>> balancer = TorchJd(2, "MGDA")  # doctest: +SKIP
    """

    def __init__(
        self,
        num_tasks: int,
        aggregator: str,
        *,
        process_group: dist.ProcessGroup | None = None,
        gram_every: int = 1,
        seed: int = 0,
        **torchjd_options: bool | int | float | str,
    ) -> None:
        options = TorchJdRule.options_type(torchjd_options=torchjd_options)
        rule = TorchJdRule(options, aggregator=aggregator, seed=seed)
        super().__init__(rule, num_tasks, process_group=process_group, gram_every=gram_every)
