"""Optimizers of tables and dense weights, and their common learning-rate schedule."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen as FusedKernel,
)
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from stem_torchrec.config import Config, EmbeddingConfig, OptimConfig
from stem_torchrec.distributed.embeddings import OwnerEmbeddings
from stem_torchrec.distributed.guarded_optimizer import GuardedOptimizer
from stem_torchrec.distributed.state_by_owner import OptimizerByOwner

FUSED = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
    "adam": EmbOptimType.ADAM,
}


def is_fused(config: EmbeddingConfig, device: str) -> bool:
    """Whether the tables' optimizer runs inside their backward: all but Adam on CPU."""
    return not (config.optimizer == "adam" and device == "cpu")


def fused_params(config: EmbeddingConfig, device: str) -> dict[str, Any]:
    """FBGEMM's arguments for the optimizer that runs inside a table's backward.

    Fused Adam exists on GPU only; on CPU the tables get the ``dense`` kernel and a torch Adam.
    """
    if not is_fused(config, device):
        return {}
    params: dict[str, Any] = {
        "optimizer": FUSED[config.optimizer],
        "learning_rate": config.lr,
        "eps": config.eps,
    }
    if config.optimizer == "adam":
        params |= {"beta1": config.beta1, "beta2": config.beta2}
    return params


_TABLES = "tables"


class Optimizers:
    """All optimizers of a sharded model.

    Attributes:
        fused: steps inside the tables' backward; only its learning rate is set here.
        stepped: dense weights, and tables that no fused optimizer serves (data-parallel tables,
            Adam on CPU).
        dense: the dense weights.
        need_gradients: a fused optimizer changes tables or its state by a gradient of zero: Adam,
            whose moments go on, and Adagrad with an epsilon of 0, which divides 0 by 0.
    """

    def __init__(self, config: Config, model: DistributedModelParallel) -> None:
        self._config = config
        self._embeddings = {
            name: part
            for name, part in model.module.named_modules()
            if isinstance(part, OwnerEmbeddings)
        }
        self._by_owner = OptimizerByOwner(
            [table for part in self._embeddings.values() for table in part.layout]
        )
        self._kernels = list(fused_kernels(model))
        self.fused: KeyedOptimizer = model.fused_optimizer
        fused_names = set(self.fused.params)
        tables, dense = {}, {}
        for name, parameter in model.named_parameters():
            if ".embedding_bags." not in name:
                dense[name] = parameter
            elif name not in fused_names and parameter.numel() > 0:  # empty: on other ranks only
                tables[name] = parameter
        self.dense = list(dense.values())
        embedding = config.embedding
        by_zero = {"adam": True, "sgd": False}.get(embedding.optimizer, embedding.eps == 0)
        self.need_gradients = by_zero and bool(self._kernels)
        self._dense = GuardedOptimizer(dense, lambda p: dense_optimizer(config.optim, p))
        clipped: KeyedOptimizer = self._dense
        if config.optim.clip_norm is not None:
            clipped = GradientClippingOptimizer(
                self._dense, GradientClipping.NORM, max_gradient=config.optim.clip_norm
            )
        self._tables = (
            GuardedOptimizer(tables, lambda p: table_optimizer(config.embedding, p))
            if tables
            else None
        )
        parts = [("dense", clipped)]
        if self._tables is not None:
            parts.append((_TABLES, self._tables))
        self.stepped = CombinedOptimizer(parts)

    def state_dict(self) -> dict[str, Any]:
        """State by parameter name, that of tables by owner; learning rates are not in it."""
        return {
            part: state | {"state": self._by_owner.split(state["state"])}
            for part, state in self._wide_state().items()
        }

    def forget_gradients(self) -> None:
        """Before a backward: tables' gradients are not to add up over steps; dense weights are
        given theirs."""
        if self._tables is not None:
            self._tables.zero_grad(set_to_none=True)

    def step(self, left_out: Tensor) -> None:
        """What is not in the tables' backward, unless the () bool on the device is set."""
        guarded = [part for part in (self._dense, self._tables) if part is not None]
        for part in guarded:
            part.left_out = left_out
        for _, optimizer in self.stepped.optimizers:  # each alone: torch profiles joined ones twice
            optimizer.step()
        for part in guarded:
            part.left_out = None

    def make_state(self) -> None:
        """Create the state that optimizers make in their first step, for loading into it.

        The step has zero gradients, yet may change weights (decay): load those afterwards.
        """
        self.stepped.init_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        joined = {
            part: self._by_owner.join(state[part]["state"], wide["state"])
            for part, wide in self._wide_state().items()
        }
        self.fused.load_state_dict({**state["fused"], "state": joined["fused"]})
        stepped = _as_tensors(joined["stepped"])
        self.stepped.load_state_dict({**state["stepped"], "state": stepped})

    def _wide_state(self) -> dict[str, dict[str, Any]]:
        """The optimizers' own tensors by parameter name, shards as ShardedTensor."""
        stepped = self.stepped.state_dict()
        shards = self._as_shards(stepped["state"])
        return {"fused": self.fused.state_dict(), "stepped": stepped | {"state": shards}}

    def _as_shards(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """State of sharded tables as shards of one tensor.

        The dense kernel's parameters are local tensors whose names do not tell ranks apart.
        """
        whole = {
            key: value
            for name, part in self._embeddings.items()
            for key, value in part.tables.state_dict(prefix=f"{_TABLES}.{name}.tables.").items()
        }

        def wrapped(parameter: str, value: Any) -> Any:
            table = whole.get(parameter)
            if not isinstance(table, ShardedTensor) or not isinstance(value, Tensor):
                return value
            # Several column shards on one rank are one parameter, stacked by rows.
            places = [shard.metadata for shard in table.local_shards()]
            rows = [place.shard_sizes[0] for place in places]
            if value.shape != (sum(rows), places[0].shard_sizes[1]):
                return value
            return ShardedTensor._init_from_local_shards_and_global_metadata(
                [Shard(part, place) for part, place in zip(value.split(rows), places, strict=True)],
                table.metadata(),
                process_group=table._process_group,
            )

        return {
            parameter: {name: wrapped(parameter, value) for name, value in values.items()}
            for parameter, values in state.items()
        }

    def set_learning_rates(self, factor: float) -> dict[str, float]:
        """Set both learning rates to ``factor`` of their peaks, for the step that follows."""
        rates = {
            "dense": self._config.optim.lr * factor,
            "embedding": self._config.embedding.lr * factor,
        }
        for optimizer, lr in (
            (self._dense, rates["dense"]),
            (self._tables, rates["embedding"]),
            (self.fused, rates["embedding"]),
        ):
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = lr
        for kernel in self._kernels:
            kernel.set_learning_rate(rates["embedding"])
        return rates

    def set_applied_steps(self, steps: int) -> None:
        """Set what fused Adam corrects its bias by: steps that have changed weights before.

        FBGEMM counts every lookup, those of evaluations too, and keeps its count out of the state.
        """
        if self._config.embedding.optimizer != "adam":
            return
        for kernel in self._kernels:
            kernel.iter_cpu.fill_(steps)  # the one that counts, unless it is 0
            kernel.iter.fill_(steps)


def fused_kernels(model: nn.Module) -> Iterator[FusedKernel]:
    """FBGEMM's modules in a sharded model, which TorchRec does not register as its own."""
    for module in model.modules():
        for lookup in getattr(module, "_lookups", ()):
            yield from (part for part in lookup.modules() if isinstance(part, FusedKernel))


def _as_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``_as_shards``."""

    def joined(value: Any) -> Any:
        if not isinstance(value, ShardedTensor):
            return value
        return torch.cat([shard.tensor for shard in value.local_shards()])

    return {
        parameter: {name: joined(value) for name, value in values.items()}
        for parameter, values in state.items()
    }


def dense_optimizer(config: OptimConfig, parameters: Any) -> torch.optim.Optimizer:
    lr, eps, decay = config.lr, config.eps, config.weight_decay
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=lr, eps=eps, weight_decay=decay, betas=betas, fused=True
        )
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, lr=lr, eps=eps, weight_decay=decay, betas=betas, fused=True
        )
    if config.optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr=lr, eps=eps, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=lr, weight_decay=decay)


def table_optimizer(config: EmbeddingConfig, parameters: Any) -> torch.optim.Optimizer:
    """The torch twin of the fused optimizer, for tables outside of it."""
    if config.optimizer == "adam":
        betas = (config.beta1, config.beta2)
        return torch.optim.Adam(parameters, lr=config.lr, eps=config.eps, betas=betas, fused=True)
    if config.optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr=config.lr, eps=config.eps)
    if config.optimizer == "rowwise_adagrad":
        return RowWiseAdagrad(parameters, lr=config.lr, eps=config.eps)
    return torch.optim.SGD(parameters, lr=config.lr)


def learning_rate_factor(config: OptimConfig, step: int, total_steps: int) -> float:
    """Share of the peak learning rate in step 0, 1, ...: linear warm-up, then decay.

    Step s of the warm-up has (s + 1) / warmup_steps. The decay ends at ``decay_steps`` (the run's
    last step if null) with ``final_lr_ratio`` and stays there.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.decay in ("none", "plateau"):  # a plateau is found where evaluations are judged
        return 1.0
    end = config.decay_steps or total_steps
    share = min(1.0, (step - config.warmup_steps) / max(1, end - config.warmup_steps))
    left = 1 - share if config.decay == "linear" else (1 + math.cos(math.pi * share)) / 2
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * left
