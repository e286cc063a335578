"""What ``throughput.py`` times, each contestant in a process of its own that keeps its state."""

import logging
import resource
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, NamedTuple

from workload import L2, Workload

if TYPE_CHECKING:
    from stem_torchrec.training.session import Session

Step = Callable[[], None]
IN_MEMORY_BATCHES = 32
MEMORY_LEFT_BYTES = 1 << 30


@dataclass(frozen=True)
class Contestant:
    """One thing to time.

    Attributes:
        kind: ``trainer``, ``tables``, ``plain``, ``plain_keeping_memory`` or ``floor``.
        overrides: the trainer's config keys by section.
        alone: runs after the others, for the memory it needs; allocations beyond what is free
            fail.
    """

    name: str
    kind: str
    workload: Workload
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    alone: bool = False


class Report(NamedTuple):
    """A child's answer.

    Attributes:
        seconds: of the steps asked for; 0 in the first report, which says that it is ready.
        cpu_seconds: of all the process's threads in that time.
        peak_rss_bytes: largest resident set so far.
        sharding: number of tables by sharding type and kernel; trainer only.
        failure: what went wrong, the process has ended then; None if nothing did.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    sharding: dict[str, int] | None = None
    failure: str | None = None


def serve(contestant: Contestant, threads: int, commands: Connection) -> None:
    """Run as many steps as each command says and report their time; end at None."""
    import torch

    if contestant.alone:
        limit = _available_memory_bytes() - MEMORY_LEFT_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(threads)
    try:
        step, sharding = _BUILDERS[contestant.kind](contestant)
        commands.send(Report(0.0, 0.0, peak_rss_bytes(), sharding))
        while (num_steps := commands.recv()) is not None:
            start, cpu_start = perf_counter(), process_time()
            for _ in range(num_steps):
                step()
            seconds, cpu_seconds = perf_counter() - start, process_time() - cpu_start
            commands.send(Report(seconds, cpu_seconds, peak_rss_bytes(), sharding))
    except (RuntimeError, MemoryError) as error:
        if "allocate memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        commands.send(Report(0.0, 0.0, peak_rss_bytes(), failure=f"does not fit: {error}"))


def peak_rss_bytes() -> int:
    """Of this process alone; ``getrusage`` would count what it was forked from."""
    return _kernel_figure_bytes("/proc/self/status", "VmHWM")


def _available_memory_bytes() -> int:
    return _kernel_figure_bytes("/proc/meminfo", "MemAvailable")


def _kernel_figure_bytes(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{path} has no {name}")


def _trainer(contestant: Contestant) -> tuple[Step, dict[str, int]]:
    """The trainer's loop body, data read as it does."""
    from stem_torchrec.distributed.optimizers import learning_rate_factor
    from stem_torchrec.training.session import open_split
    from stem_torchrec.training.train_record import train_metrics

    session = _session(contestant)
    config = session.config
    reader = open_split(session, "train")
    metrics = train_metrics(session)
    batches = (batch for epoch in count() for batch in reader.epoch(epoch))
    steps = count()
    session.model.train()

    def step() -> None:
        factor = learning_rate_factor(config.optim, next(steps), total_steps=1_000_000)
        session.optimizers.set_learning_rates(factor)
        metrics.update(session.step(batches).dense)

    return step, _sharding(session)


def _tables(contestant: Contestant) -> tuple[Step, dict[str, int]]:
    """Lookup, pooled features by owner, and their gradients back into the tables."""
    import torch

    session = _session(contestant)
    embeddings = session.recommender.embeddings
    batches = cycle(islice(contestant.workload.reader(prefetch=0).epoch(0), IN_MEMORY_BATCHES))
    gradients = [torch.randn_like(p) for p in embeddings(next(batches).sparse).values()]

    def step() -> None:
        pooled = embeddings(next(batches).sparse)
        torch.autograd.backward([*pooled.values()], gradients)

    return step, _sharding(session)


def _session(contestant: Contestant) -> "Session":
    warnings.simplefilter("ignore")
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    from stem_torchrec.distributed.ranks import start_ranks
    from stem_torchrec.training.session import build

    config = contestant.workload.config(contestant.overrides)
    return build(config, start_ranks(config.distributed))


def _sharding(session: "Session") -> dict[str, int]:
    sharding = Counter(
        f"{table.sharding_type}, {table.compute_kernel}"
        for tables in session.model.plan.plan.values()
        for table in tables.values()
    )
    return dict(sharding)


def _plain(contestant: Contestant) -> tuple[Step, None]:
    import torch
    from plain_stem_net import PlainStemNet, PlainTrainer

    workload = contestant.workload
    torch.manual_seed(0)
    model = PlainStemNet(
        workload.vocabularies,
        workload.num_tasks,
        workload.dim,
        workload.expert_widths,
        workload.hidden_widths,
    )
    return PlainTrainer(model, _in_memory(workload), L2).step, None


def _plain_keeping_memory(contestant: Contestant) -> tuple[Step, None]:
    """Plain PyTorch with the trainer's setting of the C allocator."""
    from stem_torchrec.distributed.host_memory import keep_freed_memory

    keep_freed_memory()
    return _plain(contestant)


def _in_memory(workload: Workload) -> Iterator[tuple[Any, Any]]:
    """Ids (F, B) and labels (B, T) of the first batches, again and again."""
    batches = islice(workload.reader(prefetch=0).epoch(0), IN_MEMORY_BATCHES)
    num_features = len(workload.vocabularies)
    loaded = [(b.sparse.values().view(num_features, -1), b.labels) for b in batches]
    return cycle(loaded)


def _floor(contestant: Contestant) -> tuple[Step, None]:
    from matrix_floor import MatrixFloor

    workload = contestant.workload
    floor = MatrixFloor(
        workload.batch_size,
        len(workload.vocabularies) * workload.dim,
        workload.num_tasks,
        workload.expert_widths,
        workload.hidden_widths,
    )
    return floor.step, None


_BUILDERS: dict[str, Callable[[Contestant], tuple[Step, dict[str, int] | None]]] = {
    "trainer": _trainer,
    "tables": _tables,
    "plain": _plain,
    "plain_keeping_memory": _plain_keeping_memory,
    "floor": _floor,
}
