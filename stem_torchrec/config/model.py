"""The model and its layers."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stem_torchrec.config.section import MAX_RATE, Section

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
MAX_EXPERTS = 4096
MAX_DEPTH = 64
"""Layers within a perceptron, and of experts and gates."""

Widths = tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...]


class ModelConfig(Section):
    name: ModelName = Field("stem_net", description="model to train")
    expert: Literal["mlp", "nfwfm"] = Field(
        "mlp", description="an expert: a perceptron, or one on field-weighted interactions"
    )
    num_shared_experts: int = Field(
        1, ge=0, le=MAX_EXPERTS, description="shared experts per layer (M_s)"
    )
    num_task_experts: int = Field(
        1, ge=0, le=MAX_EXPERTS, description="experts per task and layer (M_t)"
    )
    expert_widths: Widths = Field(
        (512, 512, 512),
        min_length=1,
        max_length=MAX_DEPTH,
        description="units of an expert's layers",
    )
    gate_widths: Widths = Field(
        (128, 64), max_length=MAX_DEPTH, description="units of a gate's hidden layers"
    )
    tower_widths: Widths = Field(
        (128, 64), max_length=MAX_DEPTH, description="units of a tower's hidden layers"
    )
    layers: int = Field(1, ge=1, le=MAX_DEPTH, description="stacked blocks of experts and gates")
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
        0.6,
        ge=0,
        le=MAX_RATE,
        description="aitm: weight of the penalty on a task likelier than its predecessor",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout after each hidden layer, share")

    @model_validator(mode="after")
    def _some_expert(self) -> "ModelConfig":
        if self.num_shared_experts + self.num_task_experts == 0:
            raise ValueError("num_shared_experts and num_task_experts are both 0: nothing to gate")
        if self.layers > 1 and self.num_shared_experts == 0:
            raise ValueError("layers > 1 needs num_shared_experts >= 1 for the shared stream")
        return self
