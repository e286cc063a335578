"""An S3-compatible server in a process of its own, on this machine only."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow.fs as fs
import pytest

from stem_torchrec.storage.stores import open_store

START_LIMIT_S = 60


class Store(NamedTuple):
    """A server and how to talk to it."""

    process: "subprocess.Popen[bytes]"
    filesystem: fs.FileSystem

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@contextmanager
def bucket(log: Path) -> Iterator[Store]:
    """A store with an empty ``s3://bucket``, which is gone when the block ends.

    Commands and their workers find it by the usual variables.
    """
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        url = _url(process, log)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", url)
            patch.setenv("AWS_ACCESS_KEY_ID", "key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_MAX_ATTEMPTS", "2")
            open_store.cache_clear()
            _make_bucket(url.removeprefix("http://"))
            yield Store(process, open_store("s3", "bucket", ""))
    finally:
        open_store.cache_clear()
        process.terminate()
        process.wait()


def _make_bucket(address: str) -> None:
    maker = fs.S3FileSystem(endpoint_override=address, scheme="http", allow_bucket_creation=True)
    maker.create_dir("bucket")


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"Running on (http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server did not start: {log.read_text()}")
