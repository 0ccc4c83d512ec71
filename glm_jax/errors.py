"""The one exception that is meant for a person at a command line rather than for a programmer."""

from __future__ import annotations


class UserError(Exception):
    """One line that names the thing that is wrong, its value, and what would be right.

    Command lines print it without a traceback and exit with status 2.
    """


def first_line(error: BaseException, limit: int = 200) -> str:
    """An exception as one short line: the innermost cause, without its details."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:limit]
