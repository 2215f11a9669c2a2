"""Errors that a user can cause and mend."""


class UserError(ValueError):
    """A mistake in what the user gave: a path, a file's content, an option's value.

    The message is one line that names the file or value and the remedy. The command line
    prints it without a traceback and exits with status 2.
    """
