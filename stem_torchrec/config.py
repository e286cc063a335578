"""Every key of a run, with its unit, default and allowed values.

Sections are frozen; unknown keys are refused; nothing changes after validation. Reading YAML and
command-line overrides is in ``settings.py``.
"""

from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from stem_torchrec.days import Days, parse_days
from stem_torchrec.place import DataPlace

ShardingName = Literal[
    "table_wise", "column_wise", "row_wise", "table_row_wise", "table_column_wise", "data_parallel"
]
ModelName = Literal[
    "single_task",
    "shared_bottom",
    "omoe",
    "mmoe",
    "ple",
    "esmm",
    "aitm",
    "me_mmoe",
    "me_ple",
    "stem_net",
]
KernelName = Literal["fused", "fused_uvm", "fused_uvm_caching", "dense"]
Widths = tuple[Annotated[int, Field(ge=1)], ...]


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


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, no silent conversion of NaN or inf."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation in (int, float, int | None, float | None):
            raise ValueError("Input should be a number")
        return value


class RunConfig(Section):
    dir: DataPlace = Field(
        description="run folder, or its URL: config, plan, metrics, checkpoints, TensorBoard"
    )
    seed: int = Field(0, ge=0, description="seed of weights, tables and row order")
    grace_s: int = Field(
        60,
        ge=1,
        description="seconds from SIGTERM or SIGINT in which a run saves a checkpoint and ends",
    )


class DataConfig(Section):
    path: DataPlace = Field(
        description="prepared data folder (schema.json, train/, valid/, test/), or its URL"
    )
    features: tuple[str, ...] | None = Field(
        None, description="features to use, by name; all of the schema if null"
    )
    shuffle: bool = Field(True, description="seeded shuffle of row groups and rows each epoch")
    shuffle_row_groups: int = Field(
        4, ge=1, description="row groups whose rows are shuffled together"
    )
    days: str | None = Field(
        None,
        description="train on these days only, FIRST:LAST (both included) or one day, where files "
        "or folders of the train split are named by day; valid and test stay whole",
    )
    negative_rate: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the training rows without any positive label that is kept, each "
        "with weight 1 / this, so that losses and probabilities need no correction",
    )
    prefetch_batches: int = Field(2, ge=1, description="batches prepared in the background")

    @field_validator("days", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        # YAML reads one day as a date, or as a number.
        return str(value) if isinstance(value, date | int) else value

    @field_validator("days")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            parse_days(value)
        return value

    def days_of(self, split: str) -> Days | None:
        """The days to read of a split; None for all."""
        return parse_days(self.days) if self.days is not None and split == "train" else None


class TasksConfig(Section):
    names: tuple[str, ...] | None = Field(
        None, description="tasks to train, in order; all of the schema if null"
    )


class ModelConfig(Section):
    name: ModelName = Field("stem_net", description="model to train")
    expert: Literal["mlp", "nfwfm"] = Field(
        "mlp", description="an expert: a perceptron, or one on field-weighted interactions"
    )
    num_shared_experts: int = Field(1, ge=0, description="shared experts per layer (M_s)")
    num_task_experts: int = Field(1, ge=0, description="experts per task and layer (M_t)")
    expert_widths: Widths = Field((512, 512, 512), min_length=1, description="an expert's layers")
    gate_widths: Widths = Field((128, 64), description="hidden layers of a gate")
    tower_widths: Widths = Field((128, 64), description="hidden layers of a tower")
    layers: int = Field(1, ge=1, description="stacked blocks of experts and gates")
    gate_input: Literal["both", "task", "shared"] = Field(
        "both", description="features a gate reads: the task's and the shared ones, or one of them"
    )
    stop_gradient: bool = Field(
        True, description="keep a task's loss from training other tasks' experts and tables"
    )
    task_specific_features: Literal["all", "none", "user", "item"] | tuple[str, ...] = Field(
        "all", description="features with a table per task: all, none, a side, or a list of names"
    )
    task_order: tuple[str, ...] | None = Field(
        None, description="tasks that follow one another: esmm, a pair; aitm, all of them"
    )
    calibrator_weight: float = Field(
        0.6, ge=0, description="aitm: weight of the penalty on a task likelier than its predecessor"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout after each hidden layer")

    @model_validator(mode="after")
    def _some_expert(self) -> "ModelConfig":
        if self.num_shared_experts + self.num_task_experts == 0:
            raise ValueError("num_shared_experts and num_task_experts are both 0: nothing to gate")
        if self.layers > 1 and self.num_shared_experts == 0:
            raise ValueError("layers > 1 needs num_shared_experts >= 1 for the shared stream")
        return self


class EmbeddingConfig(Section):
    dim: int = Field(16, ge=1, description="embedding dimension D of every table")
    layout: Literal["separate"] = Field("separate", description="one table per owner and feature")
    init_std: float = Field(
        0.01, ge=0, description="standard deviation of the uniform initial values"
    )
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = Field(
        "rowwise_adagrad", description="optimizer of the tables, fused into their backward"
    )
    lr: float = Field(0.02, gt=0, description="peak learning rate of the tables")
    eps: float = Field(1e-8, ge=0, description="epsilon of Adagrad and Adam")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's first-moment decay")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's second-moment decay")
    weight_decay: float = Field(0.0, ge=0, description="L2 factor on the rows a step looks up")
    max_gradient: float | None = Field(
        None, gt=0, description="clip each element of the pooled features' gradient to +-this"
    )


class OptimConfig(Section):
    optimizer: Literal["adam", "adamw", "adagrad", "sgd"] = Field(
        "adam", description="optimizer of the dense weights"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate of the dense weights")
    eps: float = Field(1e-8, ge=0, description="epsilon of Adam and Adagrad")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's first-moment decay")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's second-moment decay")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the dense weights")
    clip_norm: float | None = Field(
        None, gt=0, description="clip the global norm of the dense gradient to this"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up, dense and tables")
    decay: Literal["none", "linear", "cosine"] = Field(
        "none", description="learning-rate decay after the warm-up, dense and tables"
    )
    decay_steps: int | None = Field(
        None, ge=1, description="steps until the decay ends; the run's last step if null"
    )
    final_lr_ratio: float = Field(
        0.0, ge=0, le=1, description="learning rate at the decay's end, as a share of the peak"
    )


class BalanceConfig(Section):
    rule: str = Field(
        "equal",
        description="how the tasks' gradients of the shared part are combined: equal, static, "
        "multi_balance, mgda, pcgrad, cagrad or torchjd:NAME",
    )
    boundary: Literal["pooled", "experts", "parameters", "dense_parameters"] = Field(
        "pooled", description="which gradients are compared"
    )
    gram_rows: int | None = Field(
        None, ge=1, description="rows of the local batch in the Gram matrix (pooled); all if null"
    )
    gram_every: int = Field(1, ge=1, description="steps from one Gram matrix to the next")
    weights: tuple[float, ...] | None = Field(None, description="static: one weight per task")
    gamma: float = Field(0.01, description="multi_balance: share of the newest norm, (0, 1]")
    rho: float = Field(0.1, description="multi_balance: pull of the average gradient, >= 0")
    beta: float | None = Field(
        None, description="multi_balance: step of the weights; 1 / largest row sum if null"
    )
    matrix: Literal["cosine", "gram"] = Field("cosine", description="multi_balance: matrix in use")
    normalization: Literal["none", "l2", "loss", "loss+"] = Field(
        "none", description="mgda: what each gradient is divided by"
    )
    cagrad_c: float = Field(0.5, description="cagrad: distance from the average gradient")
    torchjd_options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="torchjd: keyword arguments of the weighting"
    )


class TrainConfig(Section):
    epochs: int = Field(1, ge=1, description="passes over the train split")
    max_steps: int | None = Field(None, ge=1, description="stop after this many steps")
    batch_size: int = Field(4096, ge=1, description="rows per rank and step")
    log_every: int = Field(100, ge=1, description="steps between train records")
    qps_warmup_steps: int = Field(
        5, ge=0, description="first steps that the samples-per-second figure leaves out"
    )
    max_skipped_steps: int = Field(
        10,
        ge=1,
        description="steps in a row left out for a loss or gradient that is not finite, until the "
        "run ends",
    )
    ne_window: int = Field(
        1_000_000, ge=1, description="samples (all ranks) in the window of the windowed NE"
    )


class EvalConfig(Section):
    every: int | None = Field(
        None, ge=1, description="steps between evaluations of the valid split; per epoch if null"
    )
    batch_size: int | None = Field(
        None, ge=1, description="rows per rank and evaluation step; train.batch_size if null"
    )


class CheckpointConfig(Section):
    every: int | None = Field(
        None, ge=1, description="steps between checkpoints; only at the end if null"
    )
    keep: int = Field(2, ge=1, description="checkpoints to keep, newest first")
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

    @field_validator("keep_best")
    @classmethod
    def _known_metric(cls, value: str | None) -> str | None:
        if value is not None:
            metric_direction(value)
        return value


class TableConstraint(Section):
    sharding: tuple[ShardingName, ...] | None = Field(None, description="sharding types to allow")
    kernel: tuple[KernelName, ...] | None = Field(None, description="compute kernels to allow")
    min_partition: int | None = Field(
        None, ge=1, description="smallest column shard, in columns (column-wise sharding)"
    )


class DistributedConfig(Section):
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the ranks; cuda where there is one if auto"
    )
    sharding: Literal["auto"] | ShardingName = Field(
        "auto", description="one sharding type for all tables, or the planner's choice"
    )
    kernel: Literal["auto"] | KernelName = Field(
        "auto", description="one compute kernel for all tables, or the planner's choice"
    )
    hbm_gib: float | None = Field(
        None, gt=0, description="device memory per rank for the plan, GiB; the device's if null"
    )
    host_gib: float | None = Field(
        None, gt=0, description="host memory per rank for the plan, GiB; the planner's if null"
    )
    ranks_per_node: int | None = Field(
        None, ge=1, description="ranks per node for the plan; torchrun's if null"
    )
    tables: dict[str, TableConstraint] = Field(
        default_factory=dict,
        description="constraints per table (owner__feature; * and ? match), over the global ones",
    )
    timeout_s: int = Field(
        600, ge=1, description="limit of one step, seconds; a collective has 10 more"
    )


class Config(Section):
    """One run. ``config.yaml`` in a run folder is this, resolved."""

    run: RunConfig
    data: DataConfig
    tasks: TasksConfig = TasksConfig()
    model: ModelConfig = ModelConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    optim: OptimConfig = OptimConfig()
    balance: BalanceConfig = BalanceConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    distributed: DistributedConfig = DistributedConfig()
    versions: dict[str, str] | None = Field(
        None, description="package versions of the run that wrote this file; not read back"
    )

    @field_validator("run", "data", mode="before")
    @classmethod
    def _missing_section(cls, value: object) -> object:
        return {} if value is None else value
