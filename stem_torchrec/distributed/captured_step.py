"""Forward and backward of a step as one CUDA graph: what they launch is launched at once.

The graph ends where the tables' backward begins: that and the dense optimizer read the learning
rate of the step.
"""

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
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.balance import rule_for
from stem_torchrec.distributed.forward_backward import ForwardBackward, Gradients
from stem_torchrec.distributed.optimizers import Optimizers
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
        kept: all that it reads of a batch; it is read as long as the graph is launched.
        inputs: those of its tensors that are copied into before each launch.
        found: what the fork keeps of its Gram matrix; None where it makes none.
    """

    kept: tuple[KeyedTensor | None, Batch]
    inputs: list[Tensor]
    output: Gradients
    replay: Callable[[], None]
    found: Found | None


class CapturedStep:
    """The forward and backward of a batch, recorded after a few of one size and then replayed.

    Numbers are those of what is not recorded, bit for bit; collectives inside are recorded, too.
    Steps that make a Gram matrix and those that do not have a graph each. A batch of another
    number of rows, such as an epoch's last, runs as it is. What is returned is overwritten by the
    next step, but for the losses.

    Args:
        step: reads nothing from the device, and nothing of the step's number but whether the fork
            is due.
        fork: the model's, if it balances.
        lookup_too: the recording begins at the ids, else at the pooled sums (see
            ``can_be_recorded``).
    """

    def __init__(
        self,
        step: ForwardBackward,
        fork: BalancedFork | None,
        graphs: Graphs,
        *,
        lookup_too: bool,
    ) -> None:
        self._step = step
        self._fork = fork
        self._graphs = graphs
        self._lookup_too = lookup_too
        self._seen: dict[tuple[int, bool], int] = {}
        self._recorded: dict[bool, _Recorded] = {}

    def __call__(self, batch: Batch) -> Gradients:
        """Collective."""
        sums = None if self._lookup_too else self._step.look_up(batch.sparse)
        recorded = self._recorded_for(sums, batch)
        if recorded is None:
            return self._graphs.run(lambda: self._run(sums, batch))
        for kept, value in zip(recorded.inputs, _inputs(sums, batch), strict=True):
            # Unseen by autograd: what looked these ids up is kept for the tables' backward.
            kept.data.copy_(value)
        recorded.replay()
        if self._fork is not None and recorded.found is not None:
            self._fork.found = recorded.found
        output = recorded.output
        return output._replace(
            sums=output.sums if sums is None else sums.values(),
            dense=output.dense._replace(losses=output.dense.losses.clone()),
        )

    def _run(self, sums: KeyedTensor | None, batch: Batch) -> Gradients:
        return self._step(batch) if sums is None else self._step.from_sums(sums, batch)

    def _recorded_for(self, sums: KeyedTensor | None, batch: Batch) -> _Recorded | None:
        """The graph of such a batch; None where there is none, yet or at all."""
        num_rows, due = len(batch.labels), self._fork is not None and self._fork.is_due
        if due in self._recorded:
            recorded = self._recorded[due]
            return recorded if len(recorded.output.dense.logits) == num_rows else None
        self._seen[num_rows, due] = self._seen.get((num_rows, due), 0) + 1
        if self._seen[num_rows, due] <= WARM_UP_STEPS:
            return None
        self._recorded[due] = self._record(sums, batch)
        return self._recorded[due]

    def _record(self, sums: KeyedTensor | None, batch: Batch) -> _Recorded:
        kept, kept_sums = _copy(batch), None if sums is None else _copy_of_sums(sums)
        output, replay = self._graphs.record(lambda: self._run(kept_sums, kept))
        found = self._fork.found if self._fork is not None and self._fork.is_due else None
        return _Recorded((kept_sums, kept), _inputs(kept_sums, kept), output, replay, found)


def _inputs(sums: KeyedTensor | None, batch: Batch) -> list[Tensor]:
    """What is read of a batch: its ids, of which a bag has one, or what became of them."""
    weights = [] if batch.weights is None else [batch.weights]
    sparse = batch.sparse
    first = [sparse.values()] if sums is None else [sums.values().detach(), sparse.lengths()]
    return [*first, batch.dense, batch.labels, *weights]


def _copy(batch: Batch) -> Batch:
    sparse = batch.sparse
    return replace(
        batch,
        sparse=KeyedJaggedTensor(
            keys=sparse.keys(),
            values=sparse.values().clone(),
            lengths=sparse.lengths().clone(),
            offsets=sparse.offsets().clone(),
            stride=sparse.stride(),
            length_per_key=sparse.length_per_key(),
        ),
        dense=batch.dense.clone(),
        labels=batch.labels.clone(),
        weights=None if batch.weights is None else batch.weights.clone(),
    )


def _copy_of_sums(sums: KeyedTensor) -> KeyedTensor:
    return KeyedTensor(sums.keys(), sums.length_per_key(), sums.values().detach().clone())


def can_be_recorded(schema: Schema, optimizers: Optimizers) -> bool:
    """Whether the lookup of a rank that has all tables is the same work in every step.

    It is for single ids, one per feature and row, in tables that wholly lie on the device. Adam's
    kernel is told the number of the step by the host.
    """
    single = all(feature.kind == "id" for feature in schema.sparse)
    return single and optimizers.tables_on_device and not optimizers.need_gradients


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
