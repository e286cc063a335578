"""How precisely the dense part computes, tables are kept and pooled features travel.

Dense weights, logits, losses, Gram matrices, balancing and optimizer states are float32 in every
precision.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from fbgemm_gpu.quantize_comm import QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor, nn
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.modules.embedding_configs import DataType

from stem_torchrec.config import Config, DistributedConfig
from stem_torchrec.distributed.ranks import device_type
from stem_torchrec.errors import UserError
from stem_torchrec.nn.exact import exact, float32_products

TABLE_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "bf16": DataType.BF16}


Products = Literal["fp32", "tf32", "bf16"]


class DensePrecision(NamedTuple):
    """The precision of one session's dense part, on one kind of device.

    Attributes:
        name: ``fp32``; ``tf32``, in which a GPU rounds what goes into products of float32; or
            ``bf16``, autocast of the forward, which the backward follows.
        device: ``cpu`` or ``cuda``.
    """

    name: Products
    device: str

    def products(self) -> AbstractContextManager[None]:
        """Around forward and backward; what the process had set is put back."""
        return float32_products("high" if self.name == "tf32" else "highest")

    def forward(self, model: nn.Module, *inputs: Any) -> Tensor:
        """The logits (B, T) float32 that a model makes of its inputs; weights stay float32."""
        with self._autocast():
            logits: Tensor = model(*inputs)
        return exact(logits)

    def _autocast(self) -> AbstractContextManager[Any]:
        lowered = self.name == "bf16"
        return torch.autocast(self.device, torch.bfloat16) if lowered else nullcontext()


FLOAT32 = DensePrecision("fp32", "cpu")


def dense_precision(wanted: Products | Literal["auto"], device: str) -> DensePrecision:
    """What ``train.precision`` means on a device: TF32 is a GPU's, a CPU has float32 for it."""
    if wanted == "auto" or (wanted == "tf32" and device == "cpu"):
        wanted = "tf32" if device == "cuda" else "fp32"
    return DensePrecision(wanted, device)


def output_type(config: Config, world_size: int, device: str) -> dict[str, SparseType]:
    """FBGEMM's argument for the type of pooled sums: autocast's, if that is what reads them.

    The dense part rounds them to bfloat16 before all else; a GPU's kernel does so as it writes
    them, in half the bytes. On one rank only: with several, ``comm_precision`` says how they
    travel.
    """
    lowered = dense_precision(config.train.precision, device).name == "bf16"
    if not (lowered and world_size == 1 and device == "cuda"):
        return {}
    return {"output_dtype": SparseType.BF16}


class _Scaled(QuantizedCommCodec):
    """Float16 of numbers that are ``scale`` times as large; a power of two costs no digit.

    The gradient of a mean over B rows is 1/B of a row's: too small for float16, whose smallest
    number is 6e-8. FBGEMM's own scale is taken out while it is float16 still, where it helps none.
    """

    def __init__(self, scale: float) -> None:
        super().__init__(SparseType.FP16, is_fwd=False)
        self._scale = scale

    def encode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        encoded: Tensor = super().encode(input_tensor * self._scale, ctx)
        return encoded

    def decode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        decoded: Tensor = super().decode(input_tensor, ctx)
        return decoded / self._scale


def comm_codecs(config: Config, device: str) -> dict[str, Any] | None:
    """TorchRec's codecs by collective: what rounds pooled features and their gradients."""
    kind = CommType(config.distributed.comm_precision)
    wanted = QCommsConfig(forward_precision=kind, backward_precision=kind)
    codecs: dict[str, Any] | None = get_qcomm_codecs_registry(wanted, device=torch.device(device))
    if codecs is not None and kind is CommType.FP16:
        for codec in codecs.values():
            codec.backward = _Scaled(2.0 ** math.ceil(math.log2(config.train.batch_rows)))
    return codecs


def about_precision(config: Config) -> dict[str, str]:
    """For a manifest: how precisely a run computes, keeps its tables, and lets features travel."""
    return {
        "train": dense_precision(config.train.precision, device_type(config.distributed)).name,
        "embedding": config.embedding.precision,
        "comm": config.distributed.comm_precision,
    }


def check_precision(config: Config, device: str) -> None:
    """Refuse what FBGEMM and gloo do not have.

    Raises:
        UserError: tables in bfloat16, which FBGEMM trains nowhere; lowered tables with Adam;
            collectives in bfloat16 on CPU ranks; lowered tables outside of the fused optimizers,
            whose states alone stay float32.
    """
    tables, comm = config.embedding.precision, config.distributed.comm_precision
    if comm == "bf16" and device == "cpu":
        raise UserError(
            "distributed.comm_precision: 'bf16' on cpu ranks, whose collectives do not have it; "
            "allowed: fp32, fp16"
        )
    if tables == "fp32":
        return
    if tables == "bf16":
        raise UserError(
            "embedding.precision: 'bf16', for which FBGEMM has no kernels that train (1.6 to 1.8); "
            "allowed: fp32, fp16"
        )
    if config.embedding.optimizer == "adam":
        raise UserError(
            f"embedding.precision: {tables!r} with embedding.optimizer adam, which is not fused on "
            "cpu ranks and whose kernel for cuda ranks takes fp32 alone; allowed: fp32, or another "
            "optimizer"
        )
    for key, value in _unfused(config.distributed):
        raise UserError(
            f"embedding.precision: {tables!r} with {key} {value}, which is outside of the fused "
            "optimizers; allowed: fp32, or another value of that key"
        )


def _unfused(config: DistributedConfig) -> Iterator[tuple[str, str]]:
    """Keys, with their values, that ask for tables outside of the fused optimizers."""
    asked: dict[str, tuple[str, ...]] = {
        "sharding": (config.sharding,),
        "kernel": (config.kernel,),
    }
    for pattern, table in config.tables.items():
        asked[f"tables.{pattern}"] = (*(table.sharding or ()), *(table.kernel or ()))
    for key, values in asked.items():
        for value in {"data_parallel", "dense"} & set(values):
            yield f"distributed.{key}", value
