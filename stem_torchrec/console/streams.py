"""stdout and stderr that a command survives: their disk may be full, their reader may have gone.

Everything that writes through ``sys.stdout`` and ``sys.stderr`` is covered: ``print``, rich,
logging, warnings, tracebacks.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

STDIN, STDOUT, STDERR = 0, 1, 2


class Lenient(io.FileIO):
    """A file descriptor to write to that never raises; what it does not take is left out.

    Attributes:
        error: why something was left out first, or None.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        left = memoryview(content).cast("B")
        size = len(left)
        try:
            while left:  # a disk may have room for a part
                left = left[os.write(self.fileno(), left) :]
        except OSError as error:
            self.error = self.error or error
        return size


class Output:
    """What has become of a command's results on stdout."""

    def __init__(self, stdout: Lenient | None) -> None:
        self._stdout = stdout

    def lost(self) -> str | None:
        """Why stdout did not take all, as one line; None if it did."""
        if self._stdout is None or self._stdout.error is None:
            return None
        return f"stdout: {self._stdout.error.strerror}"


@contextmanager
def lenient_streams() -> Iterator[Output]:
    """While it is entered, no write to stdout or stderr raises.

    Streams that somebody else has put in their place, such as a test, stay as they are.
    """
    _occupy_closed()
    before = sys.stdout, sys.stderr
    stdout = None
    if sys.stdout is sys.__stdout__:
        stdout = Lenient(STDOUT)
        sys.stdout = _text(stdout, before[0])
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(Lenient(STDERR), before[1])
    try:
        yield Output(stdout)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _text(stream: Lenient, before: TextIO | None) -> io.TextIOWrapper:
    """With the encoding of the stream that it replaces, which is None where it was closed."""
    encoding, errors = "utf-8", "backslashreplace"
    if before is not None:
        encoding, errors = before.encoding, before.errors or errors
        with suppress(OSError):
            before.flush()
    return io.TextIOWrapper(stream, encoding=encoding, errors=errors, line_buffering=True)  # type: ignore[type-var]


def _occupy_closed() -> None:
    """Put a file that refuses every write where a standard stream was closed.

    Else the next file that is opened takes its number, and gets what libraries in C print.
    """
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)  # takes the lowest number
