"""A rule at work: from the tasks' Gram matrix to multipliers, and what stays of it.

T tasks, W ranks. Gradients g_t are those of the global batch's mean loss of task t.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stem_torchrec.balancing.cosine import cosines
from stem_torchrec.balancing.report import balance_metrics, rule_metrics
from stem_torchrec.balancing.rule import Balanced, Rule, balance


class Found(NamedTuple):
    """What the last Gram matrix has left, on the device.

    Attributes:
        gram: (T, T); zeros before the first.
        balanced: what the rule made of it; None before the first.
        is_new: whether multipliers and state have yet to take it over, see ``settle``.
    """

    gram: Tensor
    balanced: Balanced | None = None
    is_new: bool = False


class AppliedRule(nn.Module):
    """Base of what balances in a backward; keeps the rule's state and the last multipliers.

    Args:
        rule: Gram matrix -> multipliers.
        process_group: the ranks whose batches make up the global one; None for this process
            alone. Give it a group of its own where something else reduces during the backward:
            collectives of one group have to come in the same order on every rank.
        gram_every: steps from one Gram matrix to the next; between them multipliers stay.

    What a step finds is new until it is settled: multipliers and state are those from before it, so
    that a step that is left out needs no copy of them.

    Attributes:
        multipliers: (T,) float32, what each task's gradient was last multiplied with.
        found: of the last Gram matrix; one who has recorded a step sets it as that step left it.

    Raises:
        ValueError: an argument is out of bounds, or the rule does not fit the number of tasks.
    """

    multipliers: Tensor

    def __init__(
        self,
        rule: Rule[Any],
        num_tasks: int,
        *,
        process_group: dist.ProcessGroup | None = None,
        gram_every: int = 1,
    ) -> None:
        super().__init__()
        if num_tasks < 1:
            raise ValueError(f"num_tasks: {num_tasks}; allowed: at least 1")
        if gram_every < 1:
            raise ValueError(f"gram_every: {gram_every}; allowed: at least 1")
        rule.check(num_tasks)
        self._rule = rule
        self._group = process_group
        self._gram_every = gram_every
        self._state_names = []
        for name, value in rule.initial_state(num_tasks).items():
            self.register_buffer(f"state_{name}", value)
            self._state_names.append(name)
        self.register_buffer("multipliers", torch.ones(num_tasks))
        self.found = Found(torch.zeros(num_tasks, num_tasks))
        self._losses: Tensor | None = None
        self._step = 0
        self._balance: Callable[..., Balanced] = balance

    @property
    def num_tasks(self) -> int:
        return len(self.multipliers)

    @property
    def needs_gram(self) -> bool:
        """Whether the rule reads the Gram matrix; if not, its diagonal marks who takes part."""
        return self._rule.needs_gram

    @property
    def is_due(self) -> bool:
        """Whether this step makes a Gram matrix."""
        return self._step % self._gram_every == 0

    @property
    def weights(self) -> Tensor:
        """(T,) float32 multipliers of the last backward; ones before the first."""
        return self.multipliers

    @property
    def cosines(self) -> Tensor:
        """(T, T) float32 between the tasks' gradients, of the last Gram matrix; 0 before it.

        Rows and columns of a task without a gradient are 0; all are with a rule that needs none.
        """
        return cosines(self.found.gram.double()).float()

    def compile_rule(self, **options: Any) -> None:
        """Let ``torch.compile`` make few launches of the rule's many on a few numbers.

        One that computes on the host stays as it is.

        Args:
            options: of ``torch.compile``.
        """
        if self._rule.recordable:
            self._balance = torch.compile(balance, **options)

    def begin(self, step: int) -> None:
        """Before each step: its number, which seeds random rules and paces the Gram matrix."""
        self._step = step
        self.found = self.found._replace(is_new=False)

    def observe(self, losses: Tensor | Sequence[Tensor]) -> None:
        """Tell a rule that reads them this rank's T losses of the step, before the backward.

        Raises:
            ValueError: not T of them.
        """
        if not isinstance(losses, Tensor):
            losses = torch.stack([loss.detach() for loss in losses])
        if losses.shape != self.multipliers.shape:
            raise ValueError(f"losses: {tuple(losses.shape)}; allowed: ({self.num_tasks},)")
        self._losses = losses.detach()

    def set_from_ranks(self, local: Tensor) -> None:
        """Add this rank's part (T, T) of the Gram matrix to the others' and apply the rule.

        Collective, with the observed losses in the same reduction if the rule needs them.

        Raises:
            RuntimeError: the rule needs losses and none were observed.
        """
        losses = self._losses if self._rule.needs_losses else local.new_empty(0)
        if losses is None:
            raise RuntimeError(
                f"{type(self._rule).__name__} needs the losses: call observe(losses) between the "
                "forward and the backward"
            )
        if self.world_size > 1:
            # A rank's gradient is W times its share; the mean over ranks takes one W of the two.
            parts = [local.flatten() / self.world_size, losses.to(local.dtype)]
            mean = self._rank_mean(torch.cat(parts))
            local, losses = mean[: local.numel()].view_as(local), mean[local.numel() :]
        self.set_from(local, losses)

    def set_from(self, gram: Tensor, losses: Tensor) -> None:
        """Let the rule turn the global Gram matrix (T, T) and losses (T,) into multipliers.

        They are new until ``settle``. Losses that the rule does not need are not looked at.
        """
        state = {name: getattr(self, f"state_{name}") for name in self._state_names}
        balanced = self._balance(self._rule, gram, losses, state, self._step)
        self.found = Found(gram if self.needs_gram else self.found.gram, balanced, is_new=True)

    @property
    def newest(self) -> Tensor:
        """(T,) float32 multipliers of the step under way."""
        balanced = self.found.balanced
        if balanced is None or not self.found.is_new:
            return self.multipliers
        return balanced.multipliers

    def settle(self, left_out: Tensor | None = None) -> None:
        """After the backward: let multipliers and state be what this step found, if it did.

        Args:
            left_out: () bool, whether the step is left out, and they stay; looked at on the
                device. None where no step ever is.
        """
        balanced = self.found.balanced
        if balanced is not None and self.found.is_new:
            new = {f"state_{name}": value for name, value in balanced.state.items()}
            for name, value in {"multipliers": balanced.multipliers, **new}.items():
                kept = self.get_buffer(name)
                if left_out is None:
                    kept.copy_(value)
                else:
                    torch.where(left_out, kept, value.to(kept.dtype), out=kept)
        self.found = self.found._replace(is_new=False)

    @property
    def world_size(self) -> int:
        return self._group.size() if self._group is not None else 1

    def _rank_mean(self, local: Tensor) -> Tensor:
        dist.all_reduce(local, group=self._group)
        return local / self.world_size

    def last_state(self) -> dict[str, Any] | None:
        """What ``metrics`` reports on, on the host; None before the first Gram matrix."""
        gram, balanced = self.found.gram, self.found.balanced
        if balanced is None:
            return None
        last = balanced._asdict() | {"gram": gram}
        state = {name: value.cpu() for name, value in last.pop("state").items()}
        return {name: value.cpu() for name, value in last.items()} | {"state": state}

    def set_last_state(self, state: Mapping[str, Any] | None) -> None:
        """Take up what ``last_state`` gave."""
        if state is None:
            self.found = self.found._replace(balanced=None)
            return
        device = self.multipliers.device
        balanced = Balanced(
            multipliers=state["multipliers"].to(device),
            state={name: value.to(device) for name, value in state["state"].items()},
            active=state["active"].to(device),
            fallback=state["fallback"].to(device),
        )
        self.found = Found(state["gram"].to(device), balanced)

    def metrics(self) -> dict[str, Tensor]:
        """Figures of the last step with a Gram matrix, see ``report.py``; nothing before the first.

        Without those of gradients where the rule needs none.
        """
        gram, balanced = self.found.gram, self.found.balanced
        if balanced is None:
            return {}
        return balance_metrics(gram, balanced) if self.needs_gram else rule_metrics(balanced)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As ``nn.Module`` does, but ``half()`` and its like leave the state's precision."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self
