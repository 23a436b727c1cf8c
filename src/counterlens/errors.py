"""The one exception that a user can cause."""


class UserError(Exception):
    """A mistake in configuration, data or weights, told in one line.

    The message names the file, the key or value, and the remedy. The command line prints it
    without a traceback and exits with 2; any other exception is a bug.
    """
