"""Exact metrics of a split: predictions of all ranks joined on rank 0.

n samples of the split, T tasks.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stem_torchrec.data.auc import auc, grouped_auc
from stem_torchrec.nn.losses import Labelled

Floats = NDArray[np.float64]


class Joined(NamedTuple):
    """All samples of a split.

    Attributes:
        logits: (n, T).
        labels: (n, T) 0 or 1; meaningless where the weight is 0.
        weights: (n, T), 0 where the label is null.
        groups: (n,) groups of GAUC, or None.
    """

    logits: Floats
    labels: Floats
    weights: Floats
    groups: NDArray[np.int64] | None


class Predictions:
    """Collects a rank's predictions on the host: 12 bytes per sample and task."""

    def __init__(self, num_tasks: int, *, has_groups: bool) -> None:
        self._floats = [torch.zeros(0, 3 * num_tasks)]
        self._groups = [torch.zeros(0, 1, dtype=torch.int64)] if has_groups else None

    def add(self, logits: Tensor, target: Labelled, groups: Tensor | None) -> None:
        """Rows of one batch: logits (B, T), groups (B,)."""
        columns = [logits.float(), target.labels, target.weights]
        self._floats.append(torch.cat(columns, dim=1).cpu())
        if self._groups is not None and groups is not None:
            self._groups.append(groups.cpu().unsqueeze(1))

    def joined(self, gather: Callable[[Tensor], Tensor | None]) -> Joined | None:
        """The rows of all ranks on rank 0, None elsewhere. Collective through ``gather``."""
        floats = gather(torch.cat(self._floats))
        groups = gather(torch.cat(self._groups)) if self._groups is not None else None
        if floats is None:
            return None
        logits, labels, weights = np.split(floats.double().numpy(), 3, axis=1)
        return Joined(logits, labels, weights, None if groups is None else groups[:, 0].numpy())


def evaluation(tasks: Sequence[str], samples: "Joined | None") -> dict[str, Any]:
    """The metrics of an eval record, from every sample of a split (rank 0 has them).

    Returns:
        ``logloss`` (nats), ``ne`` (log loss over the entropy of the mean label), ``auc``,
        ``gauc`` (mean over groups with both labels, by their weight), ``calibration`` (predicted
        over observed positives) per task, ``labels`` (observed) and ``auc_mean``. A figure that
        the labels do not define, such as the AUC of a task with positives only, is None.
    """
    assert samples is not None, "only rank 0 has all samples"
    record: dict[str, dict[str, float | int | None]] = {
        name: {} for name in ("logloss", "ne", "auc", "gauc", "calibration", "labels")
    }
    for index, task in enumerate(tasks):
        seen = samples.weights[:, index] > 0
        columns = (
            samples.logits[seen, index],
            samples.labels[seen, index],
            samples.weights[seen, index],
        )
        for name, value in _task_metrics(*columns).items():
            record[name][task] = value
        if samples.groups is not None:
            record["gauc"][task] = grouped_auc(*columns, samples.groups[seen])
        else:
            record["gauc"][task] = None
        record["labels"][task] = int(seen.sum())
    aucs = [value for value in record["auc"].values() if value is not None]
    return record | {"auc_mean": float(np.mean(aucs)) if aucs else None}


def _task_metrics(logits: Floats, labels: Floats, weights: Floats) -> dict[str, float | None]:
    total = weights.sum()
    if total == 0:
        return {"logloss": None, "ne": None, "auc": None, "calibration": None}
    losses = np.logaddexp(0.0, logits) - labels * logits
    logloss = float((weights * losses).sum() / total)
    mean_label = float((weights * labels).sum() / total)
    predicted = float((weights * _sigmoid(logits)).sum() / total)
    mixed = 0 < mean_label < 1
    entropy = -sum(p * np.log(p) for p in (mean_label, 1 - mean_label)) if mixed else 0.0
    return {
        "logloss": logloss,
        "ne": float(logloss / entropy) if mixed else None,
        "auc": auc(logits, labels, weights),
        "calibration": predicted / mean_label if mean_label > 0 else None,
    }


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))
