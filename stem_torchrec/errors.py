"""The one error a user can cause."""


class UserError(Exception):
    """A mistake in the configuration, the data or a path.

    The message names the key or column, the value found and what is allowed. The command line
    prints it without a traceback and exits with code 2.
    """
