"""Ranks, and how the tables are spread over them."""

from typing import Literal

from pydantic import Field

from stem_torchrec.config.section import MAX_GIB, MAX_SECONDS, Section

ShardingName = Literal[
    "table_wise", "column_wise", "row_wise", "table_row_wise", "table_column_wise", "data_parallel"
]
KernelName = Literal["fused", "fused_uvm", "fused_uvm_caching", "dense"]
PipelineName = Literal["auto", "base", "sparse_dist", "prefetch"]


class TableConstraint(Section):
    sharding: tuple[ShardingName, ...] | None = Field(None, description="sharding types to allow")
    kernel: tuple[KernelName, ...] | None = Field(None, description="compute kernels to allow")
    min_partition: int | None = Field(
        None,
        ge=4,
        le=65536,
        multiple_of=4,
        description="smallest column shard, in columns, a multiple of 4 (column-wise sharding)",
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
    comm_precision: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32",
        description="of pooled features and their gradients on the way between ranks",
    )
    hbm_gib: float | None = Field(
        None,
        gt=0,
        le=MAX_GIB,
        description="device memory per rank for the plan, GiB; the device's if null",
    )
    host_gib: float | None = Field(
        None,
        gt=0,
        le=MAX_GIB,
        description="host memory per rank for the plan, GiB; the planner's if null",
    )
    ranks_per_node: int | None = Field(
        None, ge=1, le=4096, description="ranks per node for the plan; torchrun's if null"
    )
    tables: dict[str, TableConstraint] = Field(
        default_factory=dict,
        description="constraints per table (owner__feature; * and ? match), over the global ones",
    )
    pipeline: PipelineName = Field(
        "auto",
        description="what is under way while a step computes: nothing (base), the next batch's ids "
        "(sparse_dist, auto), the rows of caching tables too (prefetch, on GPUs)",
    )
    timeout_s: int = Field(
        600,
        ge=1,
        le=MAX_SECONDS,
        description="limit of one step, seconds; a collective has 10 more",
    )
