"""What training needs of a machine, checked one by one."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from stem_torchrec.errors import UserError
from stem_torchrec.launch.versions import FBGEMM_OF_DEVICE, installed, misfit
from stem_torchrec.storage.place import Place, in_store
from stem_torchrec.storage.store_path import StorePath

IMPORT = "import torch, fbgemm_gpu, torchrec; torch.ops.fbgemm.asynchronous_complete_cumsum"
LEAST_FREE_GIB = 1
PROBE_MIB = 64


class Problem(Exception):
    """A check failed; the message says what to do."""


class Check(NamedTuple):
    """``run`` gives a line of what was found or raises ``Problem``.

    Attributes:
        needed: whether nothing that follows can be tried without it.
    """

    name: str
    run: Callable[[], str]
    needed: bool = False


def checks(device: str, num_workers: int | None, run_dir: Place) -> Iterator[Check]:
    """The checks in order; those that need torch come once it can be imported.

    ``device`` is ``distributed.device``; ``num_workers`` null: one per GPU, two on a CPU.
    """
    yield Check("python", python_version)
    yield Check("versions", lambda: versions(device), needed=True)
    yield Check("import", imports, needed=True)
    import torch

    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    workers = num_workers or (max(1, torch.cuda.device_count()) if kind == "cuda" else 2)
    yield Check("devices", lambda: devices(kind, workers), needed=True)
    yield Check("collectives", lambda: backends(kind), needed=True)
    yield Check("port", free_port)
    yield Check("disk", lambda: disk(run_dir))
    yield Check("all-reduce", lambda: all_reduce(kind, workers), needed=True)
    yield Check("sharded step", lambda: sharded_step(kind, workers))


def python_version() -> str:
    found = sys.version.split()[0]
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        raise Problem(f"Python {found}; install 3.11 or 3.12 and run launch/setup.sh")
    return found


def versions(device: str) -> str:
    gpu = device == "cuda" or (device == "auto" and installed("fbgemm-gpu") is not None)
    kind = "gpu" if gpu else "cpu"
    found = {name: installed(name) for name in ("torch", FBGEMM_OF_DEVICE[kind], "torchrec")}
    problem = misfit(kind, found)
    if problem is not None:
        raise Problem(f"{problem}; launch/setup.sh --force installs what fits")
    return ", ".join(f"{name} {version}" for name, version in found.items())


def imports() -> str:
    """In another process: a wrong pair may end the one that imports it."""
    tried = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT], capture_output=True, text=True
    )
    if tried.returncode != 0:
        reason = (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]
        raise Problem(f"{reason[:200]}; launch/setup.sh --force installs what fits")
    return "torch, FBGEMM and TorchRec"


def devices(kind: str, num_workers: int) -> str:
    import torch

    if kind == "cpu":
        return f"{os.cpu_count()} CPU cores for {num_workers} ranks"
    count = torch.cuda.device_count()
    if count < num_workers:
        raise Problem(f"{count} CUDA devices for {num_workers} ranks; lower --nproc")
    return f"{count} x {torch.cuda.get_device_name(0)}"


def backends(kind: str) -> str:
    import torch.distributed as dist

    wanted = {"gloo": dist.is_gloo_available}
    if kind == "cuda":
        wanted["nccl"] = dist.is_nccl_available
    missing = [name for name, is_there in wanted.items() if not is_there()]
    if missing:
        raise Problem(f"torch has no {', '.join(missing)}; launch/setup.sh --force")
    return ", ".join(wanted)


def free_port() -> str:
    """A port that this machine reaches under its own name, as a rendezvous needs."""
    name = socket.gethostname()
    try:
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection((name, port), timeout=5).close()
    except OSError as error:
        raise Problem(
            f"port on {name!r}: {error}; let the host name resolve to this machine, or on several "
            "nodes set LOCAL_ADDR"
        ) from None
    return f"{name}:{port}"


def disk(run_dir: Place) -> str:
    """Room and speed where the run folder is or would be."""
    if in_store(run_dir):
        return _store(run_dir)
    there = run_dir.absolute()
    while not there.exists():
        there = there.parent
    free_gib = shutil.disk_usage(there).free / 2**30
    if free_gib < LEAST_FREE_GIB:
        raise Problem(f"{free_gib:.2f} GiB free at {there}; make room or choose another run.dir")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            block, start = os.urandom(2**20), time.perf_counter()
            for _ in range(PROBE_MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            speed = PROBE_MIB / (time.perf_counter() - start)
    except OSError as error:
        raise Problem(
            f"cannot write to {there}: {error.strerror}; choose another run.dir"
        ) from None
    return f"{free_gib:.0f} GiB free at {there}, {speed:.0f} MiB/s written"


def _store(run_dir: StorePath) -> str:
    probe, content = run_dir / f".doctor-{os.getpid()}", os.urandom(PROBE_MIB * 2**20)
    start = time.perf_counter()
    try:
        run_dir.require_bucket()
        probe.write_bytes(content)
        speed = PROBE_MIB / (time.perf_counter() - start)
        whole = probe.read_bytes() == content
    except UserError as error:
        raise Problem(f"{error}; see the store's credentials, or choose another run.dir") from None
    finally:
        with suppress(UserError):
            probe.remove()
    if not whole:
        raise Problem(f"{run_dir}: what was written came back changed; choose another run.dir")
    return f"{run_dir}, {speed:.0f} MiB/s written"


def all_reduce(kind: str, num_workers: int) -> str:
    from stem_torchrec.training.doctor_workers import sum_of_ranks

    _try(num_workers, sum_of_ranks, kind)
    return f"{num_workers} ranks"


def sharded_step(kind: str, num_workers: int) -> str:
    from stem_torchrec.training.doctor_workers import small_run, train_small

    with tempfile.TemporaryDirectory() as folder:
        config = small_run(Path(folder), kind)
        _try(num_workers, train_small, config)
    return f"{num_workers} ranks trained, evaluated and saved row-wise tables"


def _try(num_workers: int, worker: Callable[..., object], *arguments: object) -> None:
    from stem_torchrec.launch.launcher import run_workers

    try:
        run_workers(num_workers, worker, *arguments)
    except Exception as error:  # any failure of a rank is what the check is for
        reason = (str(error).strip().splitlines() or [repr(error)])[-1]
        raise Problem(
            f"{reason[:300]}; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the network "
            "interface; a firewall may close local ports"
        ) from None
