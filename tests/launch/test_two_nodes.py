"""Two nodes: ``launch/multinode.sh`` on both, over a network that can be cut."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.prepared import small_config, small_data
from tests.support.two_nodes import ADDRESSES, ROOT, Launched, Nodes, two_nodes, wait_for_lines

pytestmark = pytest.mark.slow

SPEED = {"qps", "qps_total", "peak_memory_bytes", "time"}
OPTIONS = ["--train.epochs", "4", "--train.log_every", "1", "--checkpoint.every", "4"]
STEPS = 32
MOTO = ["-m", "moto.server", "-H", ADDRESSES["a"], "-p", "5000"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ExitStack() as open_nodes:
        try:
            made = open_nodes.enter_context(two_nodes())
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            pytest.skip(f"network namespaces cannot be made: {error}")
        yield made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("two_nodes") / "data")


@pytest.fixture(scope="module")
def expected(data: Path) -> list[dict[str, Any]]:
    """The records of two ranks on one node."""
    run = data.parent / "one_node"
    config = small_config(data.parent / "one_node.yaml", data, run)
    words = [sys.executable, "-m", "stem_torchrec", "train", "--config", config, "--nproc", "2"]
    subprocess.run([str(word) for word in [*words, *OPTIONS]], cwd=ROOT, check=True)
    return records(run)


def records(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in SPEED} for line in lines]


@contextmanager
def both(
    nodes: Nodes,
    folder: Path,
    data: Path,
    *more: object,
    restarts: int = 0,
    before: Mapping[str, Sequence[str]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[Launched, Launched]]:
    """The job on both nodes; ended with the block."""
    config = small_config(folder / "config.yaml", data, folder / "run")
    words, settings = [config, *OPTIONS, *more], {"MAX_RESTARTS": str(restarts)}
    jobs = []
    try:
        for node in ADDRESSES:
            job = Launched(
                nodes,
                node,
                folder / f"{node}.log",
                words,
                before=(before or {}).get(node, ()),
                environment=settings | dict(environment or {}),
            )
            jobs.append(job)
        yield jobs[0], jobs[1]
    finally:
        for job in jobs:
            job.kill()


def test_it_is_a_run_of_two_ranks(
    nodes: Nodes, tmp_path: Path, data: Path, expected: list[dict[str, Any]]
) -> None:
    """The link is gone for 5 s: the run goes on."""
    with both(nodes, tmp_path, data) as (a, b):
        wait_for_lines(tmp_path / "run" / "metrics.jsonl", 5, a, b)
        nodes.link("down")
        time.sleep(5)
        nodes.link("up")
        assert (a.code(), b.code()) == (0, 0), a.text() + b.text()
    assert records(tmp_path / "run") == expected


def test_a_lost_node_comes_back(
    nodes: Nodes, tmp_path: Path, data: Path, expected: list[dict[str, Any]]
) -> None:
    with both(nodes, tmp_path, data, restarts=2) as (a, b):
        wait_for_lines(tmp_path / "run" / "metrics.jsonl", 9, a, b)
        nodes.lose("b")
        words = [tmp_path / "config.yaml", *OPTIONS]
        again = Launched(nodes, "b", b.log, words, environment={"MAX_RESTARTS": "2"})
        try:
            assert (a.code(), again.code()) == (0, 0), a.text() + again.text()
        finally:
            again.kill()
    assert records(tmp_path / "run") == expected


def test_a_link_that_stays_cut_ends_both_with_their_stacks(
    nodes: Nodes, tmp_path: Path, data: Path, expected: list[dict[str, Any]]
) -> None:
    limit = ["--distributed.timeout_s", "10"]
    with both(nodes, tmp_path, data, *limit) as (a, b):
        wait_for_lines(tmp_path / "run" / "metrics.jsonl", 9, a, b)
        nodes.link("down")
        try:
            assert (a.code(), b.code()) == (1, 1)
        finally:
            nodes.link("up")
    for rank, job in enumerate((a, b)):
        assert f"rank {rank}: a step has not ended within distributed.timeout_s" in job.text()
        assert "most recent call first" in job.text()
    with both(nodes, tmp_path, data, "--resume") as (a, b):
        assert (a.code(), b.code()) == (0, 0), a.text() + b.text()
    assert records(tmp_path / "run") == expected


def test_a_slow_link(
    nodes: Nodes, tmp_path: Path, data: Path, expected: list[dict[str, Any]]
) -> None:
    reason = nodes.delay("50ms")
    if reason is not None:
        pytest.skip(f"the kernel delays no packets: {reason}")
    try:
        with both(nodes, tmp_path, data) as (a, b):
            assert (a.code(), b.code()) == (0, 0), a.text() + b.text()
    finally:
        nodes.delay("0ms")
    assert records(tmp_path / "run") == expected


def test_a_run_folder_in_a_store(nodes: Nodes, tmp_path: Path, data: Path) -> None:
    pytest.importorskip("moto")
    store = {"AWS_ENDPOINT_URL": f"http://{ADDRESSES['a']}:5000", "AWS_MAX_ATTEMPTS": "3"}
    store |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    make = (
        "import pyarrow.fs as fs; fs.S3FileSystem(endpoint_override="
        f"'{ADDRESSES['a']}:5000', scheme='http', allow_bucket_creation=True).create_dir('bucket')"
    )
    with (tmp_path / "moto").open("w") as log:
        server = subprocess.Popen(
            [*nodes.inside("a"), sys.executable, *MOTO], stdout=log, stderr=log
        )
    try:
        while "Running on" not in (tmp_path / "moto").read_text():
            assert server.poll() is None
            time.sleep(0.1)
        command = [*nodes.inside("b"), "env", *(f"{k}={v}" for k, v in store.items())]
        subprocess.run([*command, sys.executable, "-c", make], check=True)
        options = ["--run.dir", "s3://bucket/run", "--train.max_steps"]
        with both(nodes, tmp_path, data, *options, "6", environment=store) as (a, b):
            assert (a.code(), b.code()) == (0, 0), a.text() + b.text()
        with both(nodes, tmp_path, data, *options, "9", "--resume", environment=store) as (a, b):
            assert (a.code(), b.code()) == (0, 0), a.text() + b.text()
    finally:
        server.terminate()
        server.wait()


def test_a_disk_that_only_one_node_has(nodes: Nodes, tmp_path: Path, data: Path) -> None:
    (tmp_path / "own").mkdir()
    mount = f'mount -t tmpfs none {tmp_path / "own"} && exec "$@"'
    own = {"b": ["unshare", "-m", "bash", "-c", mount, "own"]}
    options = ["--run.dir", str(tmp_path / "own" / "run")]
    with both(nodes, tmp_path, data, *options, before=own) as (a, b):
        assert (a.code(), b.code()) == (2, 2), a.text() + b.text()
    for job in (a, b):
        (line,) = [line for line in job.text().splitlines() if line.startswith("error: ")]
        assert "is not the same folder on all nodes: rank 1 on " in line
        assert re.search(r"Traceback", job.text()) is None
    assert not (tmp_path / "own" / "run" / "config.yaml").exists()
