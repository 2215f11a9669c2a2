"""Errors that a user can cause and mend."""


class UserError(ValueError):
    """A mistake in what the user gave: a path, a file's content, an option's value.

    The message is one line that names the file or value and the remedy. The command line
    prints it without a traceback and exits with status 2.
    """


def first_line(error: Exception) -> str:
    """Of another library's error, for a message of ours: its first line, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
