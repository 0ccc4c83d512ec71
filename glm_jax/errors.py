"""The one exception that is meant for a person at a command line rather than for a programmer."""

from __future__ import annotations


class UserError(Exception):
    """One line that names the thing that is wrong, its value, and what would be right.

    Command lines print it without a traceback and exit with status 2.
    """
