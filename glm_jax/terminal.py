"""What programs at a terminal share: harmless output, and a word where something takes long."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

PATIENCE = 1.5  # seconds


def printable(text: str) -> str:
    """The text without control characters: a model's output must not steer the terminal.

    >>> printable("a\\x1b[2Jb")
    'a?[2Jb'
    """
    return "".join(c if c in "\n\t" or not _steers(c) else "?" for c in text)


def _steers(char: str) -> bool:
    """C0, DEL and C1, and what turns the direction of writing round."""
    return (
        char < " " or "\x7f" <= char <= "\x9f" or char in "\u202a\u202b\u202c\u202d\u202e"
        or "\u2066" <= char <= "\u2069" or "\ud800" <= char <= "\udfff"
    )  # fmt: skip


@contextlib.contextmanager
def notice(text: str, patience: float | None = None) -> Iterator[None]:
    """Says on standard error what is going on if it goes on for long, and how long it took.

    Args:
      patience: seconds before anything is said.
    """
    said = threading.Event()
    start = time.monotonic()

    def say() -> None:
        said.set()
        print(text, end=" ", file=sys.stderr, flush=True)

    timer = threading.Timer(PATIENCE if patience is None else patience, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if said.is_set():
            print(f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
