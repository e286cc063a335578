"""Forward and backward of a step as one CUDA graph: what they launch is launched at once."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stem_torchrec.balancing.applied_rule import Found
from stem_torchrec.balancing.fork import BalancedFork
from stem_torchrec.config import Config
from stem_torchrec.data.batch import Batch
from stem_torchrec.distributed.balance import rule_for
from stem_torchrec.distributed.forward_backward import ForwardBackward, Gradients
from stem_torchrec.distributed.ranks import device_type
from stem_torchrec.errors import UserError

WARM_UP_STEPS = 3
"""Steps that run as they are: libraries choose kernels and allocate what a graph must not."""


class Graphs(Protocol):
    """Runs and records functions that launch work."""

    def run(self, function: Callable[[], Gradients]) -> Gradients:
        """As it is; before a recording, and beside it."""
        ...

    def record(self, function: Callable[[], Gradients]) -> tuple[Gradients, Callable[[], None]]:
        """Its result, and what launches it all again, on the memory of the first time."""
        ...


class CudaGraphs:
    """CUDA graphs, recorded on the stream on which the same work has run before.

    Autograd remembers the stream of a weight's first use, and a graph may not wait for another.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def run(self, function: Callable[[], Gradients]) -> Gradients:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = function()
        current.wait_stream(self._stream)
        return output

    def record(self, function: Callable[[], Gradients]) -> tuple[Gradients, Callable[[], None]]:
        """Nothing of ``function`` happens before it is replayed."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, of the reader and of NCCL, allocate and ask while this one records.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            output = function()
        return output, graph.replay


class _Recorded(NamedTuple):
    """A graph with the memory that it reads and writes.

    Attributes:
        sums, batch: what it reads, kept for as long as it is launched.
        found: what the fork keeps of its Gram matrix; None where it makes none.
    """

    sums: KeyedTensor
    batch: Batch
    output: Gradients
    replay: Callable[[], None]
    found: Found | None


class CapturedStep:
    """What follows the lookup, recorded after a few batches of one size and then replayed.

    Numbers are those of what is not recorded, bit for bit; collectives inside are recorded, too.
    Steps that make a Gram matrix and those that do not have a graph each. A batch of another
    number of rows, such as an epoch's last, runs as it is. What is returned is overwritten by the
    next step, but for the losses.

    Lookup and tables' backward are not recorded: bags have another number of ids in each step, and
    FBGEMM's lookup reads the learning rate of its backward on the host.

    Args:
        step: reads nothing from the device, and nothing of the step's number but whether the fork
            is due.
        fork: the model's, if it balances.
    """

    def __init__(self, step: ForwardBackward, fork: BalancedFork | None, graphs: Graphs) -> None:
        self._step = step
        self._fork = fork
        self._graphs = graphs
        self._seen: dict[tuple[int, bool], int] = {}
        self._recorded: dict[bool, _Recorded] = {}

    def __call__(self, batch: Batch) -> Gradients:
        """Collective."""
        sums = self._step.look_up(batch.sparse)
        recorded = self._recorded_for(sums, batch)
        if recorded is None:
            return self._graphs.run(lambda: self._step.from_sums(sums, batch))
        kept = _inputs(recorded.sums, recorded.batch)
        for place, value in zip(kept, _inputs(sums, batch), strict=True):
            place.copy_(value)
        recorded.replay()
        if self._fork is not None and recorded.found is not None:
            self._fork.found = recorded.found
        output = recorded.output
        return output._replace(
            sums=sums.values(),
            dense=output.dense._replace(losses=output.dense.losses.clone()),
        )

    def _recorded_for(self, sums: KeyedTensor, batch: Batch) -> _Recorded | None:
        """The graph of such a batch; None where there is none, yet or at all."""
        num_rows, due = len(batch.labels), self._fork is not None and self._fork.is_due
        if due in self._recorded:
            recorded = self._recorded[due]
            return recorded if len(recorded.batch.labels) == num_rows else None
        self._seen[num_rows, due] = self._seen.get((num_rows, due), 0) + 1
        if self._seen[num_rows, due] <= WARM_UP_STEPS:
            return None
        self._recorded[due] = self._record(sums, batch)
        return self._recorded[due]

    def _record(self, sums: KeyedTensor, batch: Batch) -> _Recorded:
        sums = KeyedTensor(sums.keys(), sums.length_per_key(), sums.values().detach().clone())
        batch = _copy(batch)
        output, replay = self._graphs.record(lambda: self._step.from_sums(sums, batch))
        found = self._fork.found if self._fork is not None and self._fork.is_due else None
        return _Recorded(sums, batch, output, replay, found)


def _inputs(sums: KeyedTensor, batch: Batch) -> list[Tensor]:
    """What is read of a batch; ids belong to the boundary ``parameters`` alone."""
    weights = [] if batch.weights is None else [batch.weights]
    lengths = batch.sparse.lengths()  # of bags whose mean is taken
    return [sums.values().detach(), lengths, batch.dense, batch.labels, *weights]


def _copy(batch: Batch) -> Batch:
    sparse = batch.sparse
    return replace(
        batch,
        sparse=KeyedJaggedTensor(
            sparse.keys(), sparse.values(), lengths=sparse.lengths().clone(), stride=sparse.stride()
        ),
        dense=batch.dense.clone(),
        labels=batch.labels.clone(),
        weights=None if batch.weights is None else batch.weights.clone(),
    )


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
