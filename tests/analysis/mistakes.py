"""What an analysis says of a mistaken command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from stem_torchrec.cli import main


def message_of_mistake(
    analysis: str,
    options: Sequence[str],
    finished: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """The message where ``options`` (a key and its values) replace those of a sound command line.

    ``FINISHED`` in an option stands for the folder of finished runs.
    """
    sound: Mapping[str, Sequence[str]] = {
        "--single": ["FINISHED/click", "FINISHED/like"],
        "--runs": ["FINISHED/both"],
        "--tasks": ["click,like"],
        "--out": [str(out)],
    }
    key, *values = options
    given = [word for name, own in {**sound, key: values}.items() for word in (name, *own)]
    capsys.readouterr()
    assert main(["analyze", analysis, *(w.replace("FINISHED", str(finished)) for w in given)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert not out.exists()
    return message
