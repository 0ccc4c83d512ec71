"""A bar with GB and the time left, on the terminal only."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextlib.contextmanager
def byte_progress(title: str, total: int, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with every number of bytes done, from any thread."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, disable=not (show and console.is_terminal))
    lock = threading.Lock()
    with bar:
        task = bar.add_task(title, total=total)

        def advance(count: int) -> None:
            with lock:
                bar.advance(task, count)

        yield advance
