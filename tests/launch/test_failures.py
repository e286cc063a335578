"""What a launcher makes of a rank's failure."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from stem_torchrec.errors import StoreUnreachable, UserError, WorkerError
from stem_torchrec.launch.failures import comes_again, error_of


def failure(message: str) -> Any:
    content = {"message": {"message": message, "extraInfo": {"py_callstack": "Traceback"}}}
    return SimpleNamespace(message=json.dumps(content["message"]), exitcode=1)


@pytest.mark.parametrize(
    ("message", "kind", "text", "again"),
    [
        ("UserError: data.path: missing", UserError, "data.path: missing", True),
        ("StoreUnreachable: s3://b: away", StoreUnreachable, "s3://b: away", False),
        (
            "ValueError: odd",
            WorkerError,
            "Traceback\nrank 3 failed (exit code 1): ValueError: odd",
            0,
        ),
    ],
)
def test_the_kind_decides(message: str, kind: type, text: str, again: bool) -> None:
    """A mistake is told as such and not tried again; a store may answer the next time."""
    error = error_of(3, failure(message))
    assert type(error) is kind
    assert str(error) == text
    assert comes_again(error) == again
