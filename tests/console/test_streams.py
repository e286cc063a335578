"""A command goes on where its streams do not take what it says."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SPEAKS = """
import logging, sys, warnings
from rich.console import Console
from stem_torchrec.console.streams import lenient_streams

with lenient_streams() as output:
    print("result")
    print("note", file=sys.stderr)
    logging.getLogger("a").warning("logged")
    warnings.warn("warned")
    Console().print("rich result", "é")
    Console(stderr=True).print("rich note")
    with open(sys.argv[1], "w") as file:
        file.write("kept\\n")
        assert file.fileno() > 2
sys.exit(0 if output.lost() is None else 3)
"""


@pytest.mark.parametrize(
    ("redirected", "code"),
    [
        ("", 0),
        ("2>/dev/full", 0),
        (">/dev/full", 3),
        ("2>&-", 0),
        (">&-", 3),
    ],
)
def test_what_is_not_taken_is_left_out(tmp_path: Path, redirected: str, code: int) -> None:
    (tmp_path / "speaks.py").write_text(SPEAKS)
    line = f"{sys.executable} speaks.py kept {redirected}"
    result = subprocess.run(
        ["bash", "-c", line],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "kept").read_text() == "kept\n"  # and nothing else
    assert result.returncode == code
    if redirected.startswith("2") or not redirected:
        assert result.stdout == "result\nrich result é\n"
    if not redirected.startswith("2"):
        for said in ("note", "logged", "warned", "rich note"):
            assert said in result.stderr
