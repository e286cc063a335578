"""Errors that end a command with a message of our own."""


class UserError(Exception):
    """A mistake in the configuration, the data or a path.

    The message names the key or column, the value found and what is allowed. The command line
    prints it without a traceback and exits with code 2.
    """


class StoreUnreachable(UserError):
    """An object store does not answer, or refuses to; nothing is known about what it holds."""


class WorkKept(UserError):
    """The machine did not suffice; what is finished of a long work stays to be gone on with."""


class CheckpointError(Exception):
    """A checkpoint could not be written or read; the message holds every rank's reason."""


class WorkerError(Exception):
    """A rank failed; the message is that rank's own, with its traceback."""
