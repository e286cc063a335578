"""Checkpoints: when they are written, and which ones stay."""

from typing import Any, Literal

from pydantic import Field, field_validator

from stem_torchrec.config.section import MAX_STEPS, Section

METRIC_DIRECTIONS = {"auc": 1, "gauc": 1, "logloss": -1, "ne": -1}
"""Metrics by which one run is better than another: 1 where more is better."""


def metric_direction(name: str) -> int:
    """1 if more is better of ``valid/auc_mean`` or ``valid/METRIC/TASK``, -1 if less is.

    Raises:
        ValueError: no such metric.
    """
    match name.split("/"):
        case ["valid", "auc_mean"]:
            return 1
        case ["valid", metric, task] if metric in METRIC_DIRECTIONS and task:
            return METRIC_DIRECTIONS[metric]
    kinds = ", ".join(METRIC_DIRECTIONS)
    raise ValueError(f"expected valid/auc_mean or valid/METRIC/TASK with METRIC one of {kinds}")


class CheckpointConfig(Section):
    every: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="steps between checkpoints; only at the end if null",
    )
    keep: int = Field(2, ge=1, le=MAX_STEPS, description="checkpoints to keep, newest first")
    keep_best: str | None = Field(
        None,
        description="also keep the best one by this metric of the valid split: valid/auc_mean, or "
        "valid/METRIC/TASK with auc, gauc, logloss or ne; one is then saved at each evaluation too",
    )
    asynchronous: bool = Field(
        True,
        description="write in the background: training waits for a copy to host memory only; "
        "takes host memory for one more copy of tables and optimizer states",
    )
    on_error: Literal["continue", "stop"] = Field(
        "continue", description="what a save that fails does to the run: a warning, or its end"
    )

    @field_validator("keep_best", mode="before")
    @classmethod
    def _known_metric(cls, value: Any) -> Any:
        if value is not None:
            metric_direction(str(value))
        return value
