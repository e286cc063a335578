"""How the tasks' gradients of what they share are balanced."""

from typing import Annotated, Literal

from pydantic import Field

from stem_torchrec.config.section import MAX_RATE, MAX_ROWS, MAX_STEPS, Section


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
        None,
        ge=1,
        le=MAX_ROWS,
        description="rows of the local batch in the Gram matrix (pooled); all if null",
    )
    gram_every: int = Field(
        1, ge=1, le=MAX_STEPS, description="steps from one Gram matrix to the next"
    )
    weights: tuple[Annotated[float, Field(ge=0, le=MAX_RATE)], ...] | None = Field(
        None, description="static: one weight per task"
    )
    gamma: float = Field(0.01, gt=0, le=1, description="multi_balance: share of the newest norm")
    rho: float = Field(
        0.1, ge=0, le=MAX_RATE, description="multi_balance: pull of the average gradient"
    )
    beta: float | None = Field(
        None,
        gt=0,
        le=MAX_RATE,
        description="multi_balance: step of the weights; 1 / largest row sum if null",
    )
    matrix: Literal["cosine", "gram"] = Field("cosine", description="multi_balance: matrix in use")
    normalization: Literal["none", "l2", "loss", "loss+"] = Field(
        "none", description="mgda: what each gradient is divided by"
    )
    cagrad_c: float = Field(
        0.5, ge=0, lt=1, description="cagrad: distance from the average gradient, share of its norm"
    )
    torchjd_options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="torchjd: keyword arguments of the weighting"
    )
