"""Metrics of the training stream, per task.

B rows of the local batch, T tasks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchrec.metrics.calibration import CalibrationMetric, CalibrationMetricComputation
from torchrec.metrics.metrics_config import RecComputeMode, RecTaskInfo
from torchrec.metrics.metrics_namespace import MetricPrefix
from torchrec.metrics.ne import NEMetric, NEMetricComputation
from torchrec.metrics.rec_metric import (
    MetricComputationReport,
    RecMetric,
    RecMetricComputation,
)

from stem_torchrec.distributed.dense_step import DenseOutput

# A window's sums are what was added less what has left it: of nothing, rounding may remain.
_ROUNDING = 1e-12


class _DefinedNE(NEMetricComputation):
    """NE that is NaN unless both labels occur; TorchRec's is 0 or a huge number there."""

    def _compute(self) -> list[MetricComputationReport]:
        return _where_all_occur(self, super()._compute(), ("pos_labels", "neg_labels"))


class _DefinedCalibration(CalibrationMetricComputation):
    """Calibration that is NaN without positives; TorchRec's is 0 there."""

    def _compute(self) -> list[MetricComputationReport]:
        return _where_all_occur(self, super()._compute(), ("calibration_denom",))


def _where_all_occur(
    computation: RecMetricComputation,
    reports: Sequence[MetricComputationReport],
    sums: Sequence[str],
) -> list[MetricComputationReport]:
    """The reports, with NaN for the tasks of which one of the named sums is 0."""
    result = []
    for report in reports:
        value = report.value
        for name in sums:
            total = getattr(computation, name)
            windowed = report.metric_prefix == MetricPrefix.WINDOW
            part = computation.get_window_state(name) if windowed else total
            value = value.where(part > _ROUNDING * total, math.nan)
        result.append(replace(report, value=value))
    return result


class _NE(NEMetric):
    _computation_class = _DefinedNE


class _Calibration(CalibrationMetric):
    _computation_class = _DefinedCalibration


class TrainMetrics:
    """Loss, NE and calibration of the training stream, TorchRec's metrics over all ranks.

    Args:
        batch_size: rows per rank and step.
        window: samples of all ranks in the windowed NE.
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
        infos = [
            RecTaskInfo(name=task, label_name=task, prediction_name=task, weight_name=task)
            for task in tasks
        ]
        self._metrics: list[RecMetric] = [
            kind(
                world_size=world_size,
                my_rank=rank,
                batch_size=batch_size,
                tasks=infos,
                compute_mode=RecComputeMode.FUSED_TASKS_COMPUTATION,
                window_size=max(window, batch_size * world_size),
            ).to(device)
            for kind in (_NE, _Calibration)
        ]
        # Per task: weighted losses of this rank's labels since the last figures, and the weights.
        self._sums = torch.zeros(2, len(tasks), dtype=torch.double, device=device)

    def update(self, output: DenseOutput) -> None:
        predictions = self._by_task(output.logits.sigmoid())
        labels, weights = (self._by_task(part) for part in output.target)
        for metric in self._metrics:
            metric.update(predictions=predictions, labels=labels, weights=weights)
        self._sums += torch.stack(
            [output.losses * output.total_weights, output.target.weights.sum(dim=0)]
        )

    def compute(self, *, start_anew: bool = True) -> dict[str, dict[str, float | None]]:
        """Figures by name and task, on rank 0; elsewhere the loss alone. Collective.

        ``loss`` in nats, the mean over the labelled samples since the last call with
        ``start_anew``, by their weight; ``ne`` since the start, ``ne_window`` over the last window;
        ``calibration`` is predicted over observed positives in the window. A figure that the
        labels do not define is None, by the same rules as in an evaluation: a loss needs a label,
        a NE labels of both kinds, a calibration a positive one.
        """
        sums = self._sums.clone()
        if self._world_size > 1:
            torch.distributed.all_reduce(sums)
        losses, weights = sums
        result = {"loss": self._named((losses / weights).tolist())}
        if start_anew:
            self._sums.zero_()
        reports: dict[str, float] = {}
        for metric in self._metrics:
            reports |= {key: float(value) for key, value in metric.compute().items()}
        if not reports:
            return result
        for name, key in (
            ("ne", "ne-{}|lifetime_ne"),
            ("ne_window", "ne-{}|window_ne"),
            ("calibration", "calibration-{}|window_calibration"),
        ):
            result[name] = self._named([reports[key.format(task)] for task in self._tasks])
        return result

    def state_dict(self) -> dict[str, Any]:
        """This rank's sums and windows, on the host."""
        return {
            "sums": self._sums.cpu(),
            "metrics": [_state_of(part) for part in self._computations()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the rank that ``state_dict`` was taken on, with as many ranks."""
        self._sums.copy_(_loss_sums(state))
        for part, saved in zip(self._computations(), state["metrics"], strict=True):
            _load_state(part, saved)

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on after another number of ranks: sums are kept, windows start anew."""
        if self._rank > 0:
            return  # the first rank has all sums
        self._sums.copy_(torch.stack([_loss_sums(state) for state in states]).sum(dim=0))
        for index, part in enumerate(self._computations()):
            for name in part._batch_window_buffers or {}:
                total = name.removeprefix("window_")
                saved = [state["metrics"][index]["states"][total] for state in states]
                getattr(part, total).copy_(torch.stack(saved).sum(dim=0))

    def _computations(self) -> Iterator[RecMetricComputation]:
        for metric in self._metrics:
            yield from metric._metrics_computations

    def _by_task(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._tasks, values.t().unbind(0), strict=True))

    def _named(self, values: Sequence[float]) -> dict[str, float | None]:
        """By task; None where the labels do not define the figure."""
        return {
            task: value if math.isfinite(value) else None
            for task, value in zip(self._tasks, values, strict=True)
        }


def _loss_sums(state: Mapping[str, Any]) -> Tensor:
    """Weighted losses and weights of a saved state, (2, T).

    States were once of losses added up over steps, with the number of steps: the steps' weights are
    then taken for equal.
    """
    sums: Tensor = state["sums"][:2].double()
    if "loss_steps" in state:
        losses, weights = sums
        sums = torch.stack([losses * weights / max(state["loss_steps"], 1), weights])
    return sums


def _state_of(part: RecMetricComputation) -> dict[str, Any]:
    windows = part._batch_window_buffers or {}
    return {
        "states": {name: getattr(part, name).cpu() for name in part._defaults},
        "windows": {
            name: (torch.stack(list(window.buffers)).cpu(), list(window._used_sizes))
            for name, window in windows.items()
            if window.buffers
        },
    }


def _load_state(part: RecMetricComputation, saved: Mapping[str, Any]) -> None:
    for name, value in saved["states"].items():
        getattr(part, name).copy_(value)
    for name, (values, sizes) in saved["windows"].items():
        window = (part._batch_window_buffers or {})[name]
        device = getattr(part, name).device
        window._buffers.extend(values.to(device).unbind(0))
        window._used_sizes.extend(sizes)
        window._window_used_size = sum(sizes)
