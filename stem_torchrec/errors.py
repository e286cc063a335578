"""Errors that end a command with a message of our own, which never holds a password."""

from stem_torchrec.redaction import without_passwords


class _Told(Exception):
    """Its message is printed and written; it may hold what a user has typed."""

    def __init__(self, message: object) -> None:
        super().__init__(without_passwords(str(message)))


class UserError(_Told):
    """A mistake in the configuration, the data or a path.

    The message names the key or column, the value found and what is allowed. The command line
    prints it without a traceback and exits with code 2.
    """


class StoreUnreachable(UserError):
    """An object store does not answer, or refuses to; nothing is known about what it holds."""


class SplitRefused(UserError):
    """A split cannot be evaluated: its files are gone or damaged. All ranks raise it."""


class WorkKept(UserError):
    """The machine did not suffice; what is finished of a long work stays to be gone on with."""


class EnvironmentFailure(_Told):
    """The machine fails or does not suffice: a full disk, missing permissions, no memory.

    The command line prints the message, one line, and exits with code 1. ``environment.py`` makes
    it of what Python and its libraries raise.
    """


class CheckpointError(_Told):
    """A checkpoint could not be written or read; the message holds every rank's reason."""


class WorkerError(_Told):
    """A rank failed; the message is that rank's own, with its traceback."""
