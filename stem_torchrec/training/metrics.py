"""Metrics of the training stream, per task.

B rows of the local batch, T tasks. All of them follow from a few sums over samples, S of them: the
step adds these up on the device and reads nothing from there; a record does.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stem_torchrec.distributed.dense_step import DenseOutput

MAX_STEPS_IN_WINDOW = 1000
"""Steps that a window holds at most, as TorchRec's does."""

# Of sums with weights of any size rounding may remain where nothing is left.
_ROUNDING = 1e-12


class Sums(NamedTuple):
    """The S sums over samples, (T,) float64 each, of weights and what they weigh.

    Attributes:
        loss: losses in nats, with the penalty where the model has one.
        cross_entropy: cross-entropies in nats.
        weight: of labelled samples.
        observed: labels.
        predicted: probabilities.
    """

    loss: Tensor
    cross_entropy: Tensor
    weight: Tensor
    observed: Tensor
    predicted: Tensor

    def normalized_entropy(self) -> Tensor:
        """Cross-entropy over that of the mean label (He et al., ADKDD 2014); NaN without both."""
        missed = self.weight - self.observed
        mean = self.observed / self.weight
        entropy = -torch.xlogy(self.observed, mean) - torch.xlogy(missed, 1 - mean)
        least = _ROUNDING * self.weight
        defined = (self.observed > least) & (missed > least)
        return (self.cross_entropy / entropy).where(defined, math.nan)

    def calibration(self) -> Tensor:
        """Predicted over observed positives; NaN without any of the latter."""
        observed = self.observed > _ROUNDING * self.weight
        return (self.predicted / self.observed).where(observed, math.nan)


def step_sums(output: DenseOutput) -> Tensor:
    """(S, T) float64 of this rank's rows of one step, on the device."""
    logits, (labels, weights) = output.logits, output.target
    losses = binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction="none")
    terms = torch.stack([losses, weights, weights * labels, weights * logits.sigmoid()])
    loss = (output.losses * output.total_weights).double()
    return torch.cat([loss.unsqueeze(0), terms.sum(dim=1, dtype=torch.double)])


class TrainMetrics:
    """Loss, NE and calibration of the training stream over all ranks.

    Args:
        batch_size: rows per rank and step.
        window: samples of all ranks in the windowed figures.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        batch_size: int,
        window: int,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self._tasks = tuple(tasks)
        self._rank = rank
        self._world_size = world_size
        self._since_record = torch.zeros(
            len(Sums._fields), len(tasks), dtype=torch.double, device=device
        )
        self._lifetime = self._since_record.clone()
        self._window = _Window(max(batch_size, math.ceil(window / world_size)))

    def update(self, output: DenseOutput) -> None:
        self.add(step_sums(output), len(output.logits))

    def add(self, sums: Tensor, num_rows: int) -> None:
        """Count a step: its ``step_sums`` (S, T), and this rank's rows, padding too."""
        self._since_record += sums
        self._lifetime += sums
        self._window.append(sums, num_rows)

    def compute(self, *, start_anew: bool = True) -> dict[str, dict[str, float | None]]:
        """Figures by name and task, the same on every rank. Collective; waits for the device.

        ``loss`` in nats, the mean over the labelled samples since the last call with
        ``start_anew``, by their weight; ``ne`` since the start, ``ne_window`` over the last window;
        ``calibration`` is predicted over observed positives in the window. A figure that the
        labels do not define is None, by the same rules as in an evaluation: a loss needs a label,
        a NE labels of both kinds, a calibration a positive one.
        """
        window = self._window.stacked(like=self._lifetime).sum(dim=0)
        totals = torch.stack([self._since_record, self._lifetime, window])
        if start_anew:
            self._since_record.zero_()
        if self._world_size > 1:
            torch.distributed.all_reduce(totals)
        recent, lifetime, windowed = (Sums(*part) for part in totals.cpu())
        return {
            "loss": self._named(recent.loss / recent.weight),
            "ne": self._named(lifetime.normalized_entropy()),
            "ne_window": self._named(windowed.normalized_entropy()),
            "calibration": self._named(windowed.calibration()),
        }

    def state_dict(self) -> dict[str, Any]:
        """This rank's sums and window, on the host."""
        return {
            "since_record": self._since_record.cpu(),
            "lifetime": self._lifetime.cpu(),
            "window": self._window.stacked(like=self._lifetime).cpu(),
            "window_rows": list(self._window.rows),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the rank that ``state_dict`` was taken on, with as many ranks."""
        state = _of_today(state)
        self._since_record.copy_(state["since_record"])
        self._lifetime.copy_(state["lifetime"])
        for sums, num_rows in zip(state["window"], state["window_rows"], strict=True):
            self._window.append(sums.to(self._lifetime.device), num_rows)

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on after another number of ranks: sums are kept, windows start anew."""
        if self._rank > 0:
            return  # the first rank has all sums
        states = [_of_today(state) for state in states]
        self._since_record.copy_(torch.stack([s["since_record"] for s in states]).sum(dim=0))
        self._lifetime.copy_(torch.stack([s["lifetime"] for s in states]).sum(dim=0))

    def _named(self, values: Tensor) -> dict[str, float | None]:
        """By task; None where the labels do not define the figure."""
        return {
            task: value if math.isfinite(value) else None
            for task, value in zip(self._tasks, values.tolist(), strict=True)
        }


class _Window:
    """The sums (S, T) of the last steps, of at most ``num_rows`` rows of this rank."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._held_rows = 0
        self.sums: deque[Tensor] = deque()
        self.rows: deque[int] = deque()

    def append(self, sums: Tensor, num_rows: int) -> None:
        self.sums.append(sums)
        self.rows.append(num_rows)
        self._held_rows += num_rows
        while self._held_rows > self._num_rows or len(self.rows) > MAX_STEPS_IN_WINDOW:
            self.sums.popleft()
            self._held_rows -= self.rows.popleft()

    def stacked(self, like: Tensor) -> Tensor:
        """(steps, S, T), maybe of no step."""
        return torch.stack(list(self.sums)) if self.sums else like.new_zeros(0, *like.shape)


_TORCHREC = ("cross_entropy_sum", "weighted_num_samples", "pos_labels", "calibration_num")
"""Names of TorchRec's sums in the order of ``Sums``, after the loss."""


def _of_today(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved state as ``state_dict`` gives it; once it was that of TorchRec's NE and calibration.

    Those count entropy in bits, and know no loss of the steps in lifetime and window.
    """
    if "metrics" not in state:
        return state
    totals: dict[str, Tensor] = {}
    windows: dict[str, tuple[Tensor, list[int]]] = {}
    for metric in state["metrics"]:
        totals |= metric["states"]
        windows |= metric["windows"]
    since_record = _in_nats([torch.zeros_like(totals[name]) for name in _TORCHREC])
    losses, weights = _loss_sums(state)
    since_record[Sums._fields.index("loss")] = losses
    since_record[Sums._fields.index("weight")] = weights
    window, rows = since_record.new_zeros(0, *since_record.shape), []
    if windows:
        steps, sizes = zip(*(windows[f"window_{name}"] for name in _TORCHREC), strict=True)
        window, rows = _in_nats(steps).transpose(0, 1), sizes[0]
    return {
        "since_record": since_record,
        "lifetime": _in_nats([totals[name] for name in _TORCHREC]),
        "window": window,
        "window_rows": rows,
    }


def _in_nats(sums: Sequence[Tensor]) -> Tensor:
    """TorchRec's sums (..., T) -> (S, ..., T)."""
    cross_entropy, *others = (part.double() for part in sums)
    return torch.stack([torch.zeros_like(cross_entropy), cross_entropy * math.log(2), *others])


def _loss_sums(state: Mapping[str, Any]) -> Tensor:
    """Weighted losses and weights since the last record, of such a state: (2, T).

    Earlier still they were losses added up over steps, with the number of steps: the steps'
    weights are then taken for equal.
    """
    sums: Tensor = state["sums"][:2].double()
    if "loss_steps" in state:
        losses, weights = sums
        sums = torch.stack([losses * weights / max(state["loss_steps"], 1), weights])
    return sums
