"""Two nodes on one machine: network namespaces joined by a pair of virtual Ethernet cards."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}
PORT = 29500


class Nodes:
    """Nodes ``a`` and ``b``; the jobs meet on ``a``."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def make(self) -> None:
        for node in ADDRESSES:
            _ip("netns", "add", self.namespace(node))
        _ip(
            *("link", "add", "st_a", "netns", self.namespace("a"), "type", "veth"),
            *("peer", "name", "st_b", "netns", self.namespace("b")),
        )
        for node, address in ADDRESSES.items():
            inside = ("-n", self.namespace(node))
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "addr", "add", f"{address}/24", "dev", f"st_{node}")
            _ip(*inside, "link", "set", f"st_{node}", "up")

    def remove(self) -> None:
        for node in ADDRESSES:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", self.namespace(node))

    def namespace(self, node: str) -> str:
        return f"{self._prefix}_{node}"

    def inside(self, node: str) -> list[str]:
        """What goes before a command that runs on a node."""
        return ["ip", "netns", "exec", self.namespace(node)]

    def lose(self, node: str) -> None:
        """Kill all that runs there at once, as a loss of power would."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.namespace(node)], check=True, capture_output=True
        )
        for number in found.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)

    def link(self, state: str) -> None:
        """``up`` or ``down``."""
        _ip("-n", self.namespace("b"), "link", "set", "st_b", state)

    def delay(self, how_long: str) -> str | None:
        """Let every packet of both nodes take so long; the reason where the kernel cannot."""
        for node in ADDRESSES:
            words = ["tc", "qdisc", "replace", "dev", f"st_{node}", "root", "netem"]
            result = subprocess.run(
                [*self.inside(node), *words, "delay", how_long], capture_output=True, text=True
            )
            if result.returncode != 0:
                return result.stderr.strip()
        return None


class Launched:
    """``launch/multinode.sh`` on one node, one rank."""

    def __init__(
        self,
        nodes: Nodes,
        node: str,
        log: Path,
        words: Sequence[object],
        *,
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        with log.open("a") as output:
            self.process = subprocess.Popen(
                [
                    *nodes.inside(node),
                    *before,
                    str(ROOT / "launch" / "multinode.sh"),
                    *map(str, words),
                ],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ
                | {"OMP_NUM_THREADS": "1", "NNODES": "2", "NPROC": "1"}
                | {"RDZV_ENDPOINT": f"{ADDRESSES['a']}:{PORT}"}
                | dict(environment or {}),
            )

    def kill(self) -> None:
        """The launcher; its ranks end with it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def code(self, timeout_s: float = 240) -> int:
        return self.process.wait(timeout_s)

    def text(self) -> str:
        return self.log.read_text()


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Raises CalledProcessError or FileNotFoundError where nodes cannot be made."""
    nodes = Nodes(f"st{os.getpid()}")
    try:
        nodes.make()
        yield nodes
    finally:
        nodes.remove()


def wait_for_lines(file: Path, number: int, *jobs: Launched, timeout_s: float = 200) -> None:
    """Until a run has so many records."""
    end = time.monotonic() + timeout_s
    while not file.exists() or len(file.read_text().splitlines()) < number:
        ended = [job.text() for job in jobs if job.process.poll() is not None]
        if ended or time.monotonic() > end:
            raise AssertionError("\n".join(ended or [job.text() for job in jobs]))
        time.sleep(0.05)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
