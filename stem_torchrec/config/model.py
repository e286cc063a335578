"""The model and its layers."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stem_torchrec.config.section import Section

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
Widths = tuple[Annotated[int, Field(ge=1)], ...]


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
