"""The dense step as one CUDA graph: what a step launches is launched at once.

B rows of the local batch, C_o columns of owner o's pooled features, T tasks.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stem_torchrec.balancing.applied_rule import Found
from stem_torchrec.balancing.fork import BalancedFork
from stem_torchrec.config import Config
from stem_torchrec.data.batch import Batch
from stem_torchrec.distributed.balance import rule_for
from stem_torchrec.distributed.dense_step import Dense, DenseOutput
from stem_torchrec.distributed.ranks import device_type
from stem_torchrec.errors import UserError

WARM_UP_STEPS = 3
"""Steps that run as they are: libraries choose kernels and allocate what a graph must not."""


class Graphs(Protocol):
    """Runs and records functions that launch work."""

    def run(self, function: Callable[[], DenseOutput]) -> DenseOutput:
        """As it is; before a recording, and beside it."""
        ...

    def record(self, function: Callable[[], DenseOutput]) -> tuple[DenseOutput, Callable[[], None]]:
        """Its result, and what launches it all again, on the memory of the first time."""
        ...


class CudaGraphs:
    """CUDA graphs, recorded on the stream on which the same work has run before.

    Autograd remembers the stream of a weight's first use, and a graph may not wait for another.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def run(self, function: Callable[[], DenseOutput]) -> DenseOutput:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = function()
        current.wait_stream(self._stream)
        return output

    def record(self, function: Callable[[], DenseOutput]) -> tuple[DenseOutput, Callable[[], None]]:
        """Nothing of ``function`` happens before it is replayed."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, of the reader and of NCCL, allocate and ask while this one records.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            output = function()
        return output, graph.replay


class _Recorded(NamedTuple):
    """A graph with the memory that it reads and writes.

    Attributes:
        inputs: what is copied into before each launch.
        found: what the fork keeps of its Gram matrix; None where it makes none.
    """

    inputs: list[Tensor]
    output: DenseOutput
    replay: Callable[[], None]
    found: Found | None


class CapturedStep:
    """A dense step that is recorded after a few batches of one size, and replayed from then on.

    Numbers are those of the step that is not recorded, bit for bit; collectives inside it are
    recorded, too. Steps that make a Gram matrix and those that do not have a graph each. A batch
    of another number of rows, such as an epoch's last, runs as it is. What is returned is
    overwritten by the next step, but for the losses.

    Args:
        dense_step: reads nothing from the device, and nothing of the step's number but whether
            the fork is due.
        fork: the model's, if it balances.
    """

    def __init__(self, dense_step: Dense, fork: BalancedFork | None, graphs: Graphs) -> None:
        self._dense_step = dense_step
        self._fork = fork
        self._graphs = graphs
        self._seen: dict[tuple[int, bool], int] = {}
        self._recorded: dict[bool, _Recorded] = {}

    def __call__(self, pooled: Mapping[str, Tensor], batch: Batch) -> DenseOutput:
        """Collective."""
        recorded = self._recorded_for(pooled, batch)
        if recorded is None:
            return self._graphs.run(lambda: self._dense_step(pooled, batch))
        for kept, value in zip(recorded.inputs, _inputs(pooled, batch), strict=True):
            kept.copy_(value)
        recorded.replay()
        if self._fork is not None and recorded.found is not None:
            self._fork.found = recorded.found
        return recorded.output._replace(losses=recorded.output.losses.clone())

    def _recorded_for(self, pooled: Mapping[str, Tensor], batch: Batch) -> _Recorded | None:
        """The graph of such a batch; None where there is none, yet or at all."""
        num_rows, due = len(batch.labels), self._fork is not None and self._fork.is_due
        if due in self._recorded:
            recorded = self._recorded[due]
            return recorded if len(recorded.output.logits) == num_rows else None
        self._seen[num_rows, due] = self._seen.get((num_rows, due), 0) + 1
        if self._seen[num_rows, due] <= WARM_UP_STEPS:
            return None
        self._recorded[due] = self._record(pooled, batch)
        return self._recorded[due]

    def _record(self, pooled: Mapping[str, Tensor], batch: Batch) -> _Recorded:
        kept = {owner: features.detach().clone() for owner, features in pooled.items()}
        weights = batch.weights
        kept_batch = replace(
            batch,
            dense=batch.dense.clone(),
            labels=batch.labels.clone(),
            weights=None if weights is None else weights.clone(),
        )
        output, replay = self._graphs.record(lambda: self._dense_step(kept, kept_batch))
        found = self._fork.found if self._fork is not None and self._fork.is_due else None
        return _Recorded(_inputs(kept, kept_batch), output, replay, found)


def _inputs(pooled: Mapping[str, Tensor], batch: Batch) -> list[Tensor]:
    """What a dense step reads of a batch; ids belong to the boundary ``parameters`` alone."""
    weights = [] if batch.weights is None else [batch.weights]
    return [
        *(features.detach() for features in pooled.values()),
        batch.dense,
        batch.labels,
        *weights,
    ]


def check_capture(config: Config, num_tasks: int) -> None:
    """Raise UserError if ``train.capture: on`` cannot be, for a step that is not on a GPU alone."""
    if config.train.capture != "on":
        return
    balance = config.balance
    reason = None
    if device_type(config.distributed) != "cuda":
        reason = "on a CPU, which has no CUDA graphs"
    elif balance.rule != "equal" and balance.boundary == "parameters":
        reason = "with balance.boundary parameters, which exchanges rows by their number"
    elif not rule_for(balance, num_tasks).recordable:
        reason = f"with balance.rule {balance.rule}, which computes on the host"
    if reason is not None:
        raise UserError(f"train.capture: 'on' {reason}; allowed: auto, off")
