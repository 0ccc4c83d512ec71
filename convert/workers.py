"""Running the pieces of a conversion side by side, within a bound on memory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from glm_jax.errors import UserError, first_line

T = TypeVar("T")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
          "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}  # fmt: skip
# What Python, JAX and Orbax take before any weight is read, and what a worker holds of a chunk: the
# released rows (three projections at once), a copy in another type, TensorStore's own.
BASE_MEMORY = 900_000_000
COPIES = 8
MAX_WORKERS = 4


def parse_bytes(text: str, name: str) -> int:
    """``4GB``, ``4GiB``, ``500M`` or a plain number.

    Raises:
      UserError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if not found:
        raise UserError(f"{name} is {text!r}; write a size such as 4GB")
    return int(float(found[1]) * _UNITS[found[2]])


def chunk_bytes(host_memory: int) -> int:
    """The largest piece of weights that keeps a conversion within this much memory.

    Raises:
      UserError: too little for any.
    """
    chunk = (host_memory - BASE_MEMORY) // (MAX_WORKERS * COPIES)
    if chunk < 1 << 20:
        raise UserError(
            f"--host-memory {host_memory / 1e9:.2f}GB is too little; the libraries alone need "
            f"{BASE_MEMORY / 1e9:.1f}GB: give at least 1GB"
        )
    return min(chunk, 64 << 20)


def run_all(function: Callable[[T], None], items: Iterable[T]) -> None:
    """Calls the function on every item in a few threads; the first failure stops the rest."""
    workers = min(MAX_WORKERS, max(2, os.cpu_count() or 1))
    room = threading.Semaphore(2 * workers)  # so that a long list is not queued whole
    failed: list[Future[None]] = []

    def finished(future: Future[None]) -> None:
        room.release()
        if not future.cancelled() and future.exception() is not None:
            failed.append(future)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                room.acquire()
                if failed:
                    break
                pool.submit(function, item).add_done_callback(finished)
        finally:
            pool.shutdown(cancel_futures=bool(failed) or sys.exc_info()[0] is not None)
    if failed:
        failed[0].result()


@contextlib.contextmanager
def whole_or_nothing(target: Path, overwrite: bool, needed: int) -> Iterator[Path]:
    """A temporary folder that becomes ``target`` when all went well, and is removed otherwise.

    What an interrupted run left behind is removed first; a run that is still going on is not.

    Args:
      needed: bytes to be written.

    Raises:
      UserError: the target exists, another process is writing it, or the disk is too small.
    """
    target = target.absolute()
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already; remove it, choose another, or say --overwrite")
    if target == target.parent or (target.exists() and not target.is_dir()):
        raise UserError(f"{target} is not a folder that could be replaced")
    temporary = target.parent / f".{target.name}.writing"
    lock = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(target.parent / f".{target.name}.lock", os.O_CREAT | os.O_RDWR)
        _claim(lock, target)
        shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(target.parent).free
        if free < needed:
            raise UserError(
                f"{target.parent} has {free / 1e9:.2f} GB free; {target.name} needs "
                f"{needed / 1e9:.2f} GB"
            )
        temporary.mkdir()
        yield temporary
        old = target.parent / f".{target.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _explained(error, target) from error
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(target.parent / f".{target.name}.lock")
            os.close(lock)


def _claim(lock: int, target: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"{target} is being written by another process") from None


def _explained(error: BaseException, target: Path) -> BaseException:
    if isinstance(error, UserError) or not isinstance(error, Exception):
        return error
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text:
        return UserError(f"{target} could not be written: the disk is full")
    if isinstance(error, OSError) or "RESOURCE_EXHAUSTED" in text or "tensorstore" in text.lower():
        return UserError(f"{target} could not be written: {first_line(error)}")
    return error
