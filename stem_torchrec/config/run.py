"""The run: its folder, its steps and its evaluations."""

from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator

from stem_torchrec.config.checkpoint import metric_direction
from stem_torchrec.config.section import (
    MAX_RATE,
    MAX_ROWS,
    MAX_SECONDS,
    MAX_SEED,
    MAX_STEPS,
    Section,
)
from stem_torchrec.storage.place import PlaceField


class RunConfig(Section):
    dir: PlaceField = Field(
        description="run folder, or its URL: config, plan, metrics, checkpoints, TensorBoard"
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of weights, tables and row order")
    trackers: tuple[Literal["tensorboard", "mlflow"], ...] = Field(
        ("tensorboard",),
        description="where records go beside metrics.jsonl: TensorBoard's files in tb/, MLflow's "
        "store (where MLFLOW_TRACKING_URI says)",
    )
    grace_s: int = Field(
        60,
        ge=1,
        le=MAX_SECONDS,
        description="seconds from a stop signal in which a run saves a checkpoint and ends",
    )


class Window(NamedTuple):
    """Some steps of a run.

    Attributes:
        first: the first of them, counted from 1.
        last: the last, included.
    """

    first: int
    last: int


class TrainConfig(Section):
    epochs: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="passes over the train split; null: up to 20, until the valid split no longer "
        "improves (eval.patience, 2 if null; the best weights are kept and tested), or one where "
        "there is no valid split or train.max_steps or data.days is set",
    )
    max_steps: int | None = Field(
        None, ge=1, le=MAX_STEPS, description="stop after this many steps"
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description="rows per rank and step; null: a power of two from 256 to 4096, so that a pass "
        "over the train split has 300 steps or more where it can",
    )
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto",
        description="of experts, gates and towers: tf32 (a GPU's matrix products) or bf16 "
        "(autocast); tf32 on a GPU and fp32 on a CPU if auto",
    )
    log_every: int = Field(100, ge=1, le=MAX_STEPS, description="steps between train records")
    qps_warmup_steps: int = Field(
        5,
        ge=0,
        le=MAX_STEPS,
        description="first steps that the samples-per-second figure leaves out",
    )
    max_skipped_steps: int = Field(
        10,
        ge=1,
        le=MAX_STEPS,
        description="steps in a row left out for a loss or gradient that is not finite, until the "
        "run ends",
    )
    ne_window: int = Field(
        1_000_000,
        ge=1,
        le=MAX_STEPS,
        description="samples (all ranks) in the window of the windowed NE",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile of the model; of its experts, gates and towers where a fork "
        "balances its tasks; auto is off, for now",
    )
    capture: Literal["auto", "on", "off"] = Field(
        "auto", description="the dense step as one CUDA graph; auto is off, for now"
    )
    profile: str | None = Field(
        None,
        description="START:STEPS writes a profile of rank 0's steps from step START on (the first "
        "is 1) into the run folder's profile/: a trace and a table of the dearest operations",
    )

    @field_validator("compile", "capture", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        """YAML takes a bare ``on`` or ``off`` for true or false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("profile", mode="before")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        if value is not None:
            _parse_window(str(value))
        return value

    @property
    def is_open(self) -> bool:
        """Whether the data is to settle something."""
        return self.epochs is None or self.batch_size is None

    @property
    def num_epochs(self) -> int:
        """Passes over the train split; one where the data has not settled it."""
        return self.epochs or 1

    @property
    def batch_rows(self) -> int:
        """Rows per rank and step; the most where the data has not settled it."""
        return self.batch_size or 4096

    @property
    def profiled(self) -> Window | None:
        """The steps to profile; None for none."""
        return _parse_window(self.profile) if self.profile is not None else None


_MAX_PROFILED_STEPS = 1000
"""A trace has megabytes per step."""


def _parse_window(text: str) -> Window:
    start, colon, steps = text.partition(":")
    digits = all(part.isascii() and part.isdigit() and len(part) < 16 for part in (start, steps))
    if not (colon and digits and int(start) >= 1 and 1 <= int(steps) <= _MAX_PROFILED_STEPS):
        raise ValueError(
            "expected START:STEPS such as 100:5, START from 1, STEPS from 1 to "
            f"{_MAX_PROFILED_STEPS}"
        )
    return Window(int(start), int(start) + int(steps) - 1)


class EvalConfig(Section):
    every: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="steps between evaluations of the valid split; per epoch if null",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description="rows per rank and evaluation step; train.batch_size if null",
    )
    metric: str | None = Field(
        None,
        description="figure of the valid split by which eval.patience, optim.decay plateau and "
        "tune judge: valid/auc_mean, or valid/METRIC/TASK with auc, gauc, logloss or ne; "
        "checkpoint.keep_best's if null, else valid/auc_mean",
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="evaluations in a row without a better figure, after which training ends; "
        "null for never",
    )
    min_delta: float = Field(
        0.0, ge=0, le=MAX_RATE, description="by how much more than the best a figure is better"
    )
    test_checkpoint: Literal["best", "last"] | None = Field(
        None,
        description="which weights are tested at the end; best where checkpoint.keep_best is set, "
        "else last, if null",
    )

    @field_validator("metric", mode="before")
    @classmethod
    def _known_metric(cls, value: Any) -> Any:
        if value is not None:
            metric_direction(str(value))
        return value
