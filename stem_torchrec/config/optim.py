"""The tables and the dense weights: size, initial values and optimizers."""

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from stem_torchrec.config.section import MAX_GRADIENT, MAX_RATE, MAX_STEPS, Section

Width = Annotated[int, Field(ge=4, le=65536, multiple_of=4)]


class EmbeddingConfig(Section):
    dim: Width = Field(
        16,
        description="embedding dimension D of every table that dims says nothing of, a multiple "
        "of 4",
    )
    dims: dict[str, Width] = Field(
        default_factory=dict,
        description="embedding dimension by feature (* and ? match; a feature's own name comes "
        "first, then the first pattern), over dim",
    )
    layout: Literal["separate", "fused"] = Field(
        "separate",
        description="one table per owner and feature, or one per feature with the owners' columns "
        "side by side, where row-wise Adagrad's accumulator of a row is shared by its owners",
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32",
        description="of the tables' values; pooled features and optimizer states are fp32",
    )
    init_std: float = Field(
        0.01,
        ge=0,
        le=MAX_RATE,
        description="standard deviation of the uniform initial values",
    )
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = Field(
        "rowwise_adagrad", description="optimizer of the tables, fused into their backward"
    )
    lr: float = Field(0.05, gt=0, le=MAX_RATE, description="peak learning rate of the tables")
    eps: float = Field(1e-8, ge=0, le=MAX_RATE, description="epsilon of Adagrad and Adam")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's first-moment decay")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's second-moment decay")
    weight_decay: float = Field(
        0.0, ge=0, le=MAX_RATE, description="L2 factor on the rows a step looks up"
    )
    max_gradient: float | None = Field(
        None,
        gt=0,
        le=MAX_GRADIENT,
        description="clip each element of the pooled features' gradient to +-this",
    )

    def dim_of(self, feature: str) -> int:
        """The embedding dimension of a feature's tables."""
        if feature in self.dims:
            return self.dims[feature]
        return next((d for name, d in self.dims.items() if self.fits(name, feature)), self.dim)

    @staticmethod
    def fits(pattern: str, feature: str) -> bool:
        """Whether a name of ``dims`` is a feature's, or a pattern that matches it."""
        return pattern == feature or fnmatchcase(feature, pattern)


class OptimConfig(Section):
    optimizer: Literal["adam", "adamw", "adagrad", "sgd"] = Field(
        "adam", description="optimizer of the dense weights"
    )
    lr: float = Field(
        1e-3, gt=0, le=MAX_RATE, description="peak learning rate of the dense weights"
    )
    eps: float = Field(1e-8, ge=0, le=MAX_RATE, description="epsilon of Adam and Adagrad")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's first-moment decay")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's second-moment decay")
    weight_decay: float = Field(
        0.0, ge=0, le=MAX_RATE, description="weight decay of the dense weights"
    )
    clip_norm: float | None = Field(
        None,
        gt=0,
        le=MAX_GRADIENT,
        description="clip the global norm of the dense gradient to this",
    )
    warmup_steps: int = Field(
        0, ge=0, le=MAX_STEPS, description="steps of linear warm-up, dense and tables"
    )
    decay: Literal["none", "linear", "cosine", "plateau"] = Field(
        "none",
        description="learning-rate decay after the warm-up, dense and tables; plateau drops it "
        "where eval.metric no longer improves",
    )
    decay_steps: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="steps until the decay ends; the run's last step if null",
    )
    final_lr_ratio: float = Field(
        0.0,
        ge=0,
        le=1,
        description="learning rate at the decay's end, as a share of the peak; on plateaus the "
        "lowest",
    )
    plateau_factor: float = Field(
        0.5, gt=0, lt=1, description="share of the learning rate that a plateau leaves"
    )
    plateau_patience: int = Field(
        2,
        ge=1,
        le=MAX_STEPS,
        description="evaluations in a row without a better figure that are a plateau",
    )
