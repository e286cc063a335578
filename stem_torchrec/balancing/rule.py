"""What every balancing rule is, and the part that all rules have in common.

T tasks; G (T, T) Gram matrix of the tasks' gradients; α (T,) multipliers. The combined gradient of
what the tasks share is Σ_t α_t g_t.
"""

import abc
from collections.abc import Sequence
from typing import ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from stem_torchrec.nn.options import Options

# Every tensor's first dimension is T. Lives on the device of the Gram, goes into checkpoints.
State = dict[str, Tensor]


class Situation(NamedTuple):
    """What a rule sees in one step.

    Attributes:
        gram: (T, T) float64, symmetric, 0 in the rows and columns of tasks that are not active.
            For a rule that needs no Gram matrix it may be any with a positive diagonal.
        losses: (T,) float64; 0 for tasks that are not active, NaN for a rule that needs none.
        active: (T,) bool: labelled somewhere in the global batch, gradient finite and not zero.

    >>> import torch
    >>> Situation(torch.eye(2).double(), torch.ones(2).double(), torch.tensor([True, True])).active
    tensor([True, True])
    """

    gram: Tensor
    losses: Tensor
    active: Tensor


class Balanced(NamedTuple):
    """The outcome of one step, on device.

    Attributes:
        multipliers: (T,) float32, finite, 0 for tasks left out. A task that is left out may have
            an infinite or NaN gradient, and 0·inf is NaN: combine with
            ``torch.where(multiplier == 0, 0, multiplier * gradient)``.
        state: the rule's next state.
        active: (T,) bool.
        fallback: () bool: the rule gave nothing usable, and the tasks were weighted equally.

    >>> import torch
    >>> from stem_torchrec.balancing.rules.mgda import MgdaRule
    >>> balance(MgdaRule(), torch.zeros(2, 2), torch.ones(2), {}, 0).fallback
    tensor(True)
    """

    multipliers: Tensor
    state: State
    active: Tensor
    fallback: Tensor


OptionsType = TypeVar("OptionsType", bound=Options)


class Rule(abc.ABC, Generic[OptionsType]):
    """Maps the Gram matrix and a small state to multipliers.

    Implementations make no host sync, branch on no tensor's value and take the same number of
    iterations whatever the data, so that ranks with bit-identical input agree bit for bit.

    Args:
        options: the rule's settings; their defaults if None.
        seed: of what the rule draws at random.

    Attributes:
        name: by which a config names it; not needed where it is named by import path.
        options_type: class of its options.
        needs_losses: whether it reads the situation's losses.
        needs_gram: whether it reads the Gram matrix; if not, none is made.
        recordable: a step with it can be recorded and replayed as a CUDA graph: it computes on the
            device alone, and the step's number makes no difference.

    >>> import torch
    >>> from stem_torchrec.balancing import Balancer, Options, Rule
    >>> class Half(Rule[Options]):
    ...     def multipliers(self, situation, state, step):
    ...         return 0.5 * situation.active.double(), state
    >>> shared = torch.ones(2, requires_grad=True)
    >>> first, second = Balancer(Half(), num_tasks=2).fork(shared)
    >>> (first.sum() + second.sum()).backward()
    >>> shared.grad
    tensor([1., 1.])
    """

    name: ClassVar[str]
    options_type: ClassVar[type[Options]] = Options
    needs_losses: bool = False
    needs_gram: bool = True
    recordable: bool = True

    def __init__(self, options: OptionsType | None = None, *, seed: int = 0) -> None:
        self.options: OptionsType = self.options_type() if options is None else options  # type: ignore[assignment]
        self.seed = seed

    def check(self, num_tasks: int) -> None:
        """Raise a ValueError, ``KEY: ...``, if an option does not fit the number of tasks."""
        return

    def initial_state(self, num_tasks: int, device: torch.device | None = None) -> State:
        """The state before the first step; empty for a rule without memory."""
        return {}

    @abc.abstractmethod
    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) multipliers of the active tasks and the next state.

        Entries of inactive tasks, in both, are ignored. ``step`` seeds what is random.
        """


def balance(
    rule: Rule,
    gram: Tensor,
    losses: Tensor,
    state: State,
    step: int,
    *,
    labelled: Tensor | None = None,
) -> Balanced:
    """Apply a rule to one step, leaving out the tasks that have nothing to say.

    A task takes part if it is labelled and its gradient is finite and not zero. One that does not
    has multiplier 0 and keeps its entries of the state. If no task takes part, or the rule's
    result is not finite in float32, the multipliers are 1 for every task with a finite gradient, the state
    stays as it was, and ``fallback`` is set.

    Not collective, no host sync; every rank passes bit-identical arguments and gets bit-identical
    results.

    Args:
        gram: (T, T) float32 over the global batch.
        losses: (T,) of the global batch; any where the rule does not need them.
        state: of ``rule.initial_state`` or the previous step.
        step: of the run, from 0.
        labelled: (T,) bool: some sample of the global batch has a label of the task. If None, a
            task without labels is known by its gradient of exactly 0.

    >>> from stem_torchrec.balancing.rules.mgda import MgdaRule
    >>> gram = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> balance(MgdaRule(), gram, torch.ones(2), {}, 0).multipliers
    tensor([0.7500, 0.2500])
    """
    gram = gram.detach().double()
    zero = gram.new_zeros(())  # with a number in its place each choice makes one of its own
    finite = _finite_tasks(gram)
    active = finite & (gram.diagonal() > 0)
    if labelled is not None:
        active = active & labelled
    pairs = active.unsqueeze(0) & active.unsqueeze(1)
    situation = Situation(
        gram=torch.where(pairs, gram.lerp(gram.T, 0.5), zero),
        losses=torch.where(active, losses.detach().double(), zero)
        if rule.needs_losses
        else torch.full_like(gram[0], torch.nan),
        active=active,
    )
    found, proposed = rule.multipliers(situation, state, step)
    multipliers = torch.where(active, found, zero)
    changed = {
        name: torch.where(_rows(active, old), proposed[name], old) for name, old in state.items()
    }
    usable = active.any() & _are_finite([multipliers, *changed.values()])
    return Balanced(
        torch.where(usable, multipliers, finite.to(multipliers.dtype)).float(),
        {name: torch.where(usable, changed[name], old) for name, old in state.items()},
        active,
        ~usable,
    )


def _finite_tasks(gram: Tensor) -> Tensor:
    """(T,) bool: the task's own product, and those with other finite tasks, are finite."""
    finite = gram.abs() < torch.inf
    own = finite.diagonal()
    return own & (finite | ~own).all(dim=1)


def _are_finite(parts: Sequence[Tensor]) -> Tensor:
    """() bool: all numbers are, as float32, too."""
    numbers = torch.cat([part.flatten() for part in parts if part.is_floating_point()])
    return torch.linalg.vector_norm(numbers, torch.inf) < torch.finfo(torch.float32).max


def _rows(tasks: Tensor, like: Tensor) -> Tensor:
    """(T,) -> (T, 1, …) so that it selects rows of ``like``."""
    return tasks.reshape(tasks.shape + (1,) * (like.dim() - 1))
