"""The lines of text files at random, each with its place: what errors name."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from glm_jax.data.sources import readers
from glm_jax.errors import UserError

_CHUNK = 1 << 26


class Lines:
    """Lines of one file that are not blank: ``lines[i] -> bytes``, ``lines.place(i) -> str``.

    A plain file is mapped, a compressed one held in memory. Picklable: a worker opens it again.

    Raises:
      UserError: the file is empty, or its compressed stream is damaged.
    """

    def __init__(self, path: Path, *, keep_blank: bool = False):
        self.path = path
        self._buffer = _open(path)
        starts, ends = _bounds(self._buffer)
        numbers = np.arange(1, len(starts) + 1)
        if not keep_blank:
            full = np.array(
                [bool(self._buffer[a:b].strip()) for a, b in zip(starts, ends, strict=True)], bool
            )
            starts, ends, numbers = starts[full], ends[full], numbers[full]
        if not len(starts):
            raise UserError(f"{path}: the file is empty")
        self._starts, self._ends, self._numbers = starts, ends, numbers

    def __getstate__(self) -> dict:
        return {k: v for k, v in vars(self).items() if k != "_buffer"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _buffer=_open(state["path"]))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: SupportsIndex) -> bytes:
        return bytes(self._buffer[self._starts[index] : self._ends[index]])

    def place(self, index: int) -> str:
        return f"{self.path}, line {self._numbers[index]}"


def _open(path: Path) -> bytes | mmap.mmap:
    try:
        if path.suffix in (".gz", ".zst"):
            return b"".join(line for _, line in readers.numbered_lines(path))
        with path.open("rb") as file:
            # An empty file cannot be mapped.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if _size(path) else b""
    except readers.BadRecordError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _size(path: Path) -> int:
    return path.stat().st_size


def _bounds(buffer: Sequence[int] | mmap.mmap) -> tuple[np.ndarray, np.ndarray]:
    """Where each line starts, and where it ends without its line break."""
    size, breaks = len(buffer), []
    for begin in range(0, size, _CHUNK):
        chunk = np.frombuffer(buffer[begin : begin + _CHUNK], np.uint8)  # pyrefly: ignore
        breaks.append(np.flatnonzero(chunk == ord("\n")) + begin)
    ends = np.concatenate(breaks) if breaks else np.zeros(0, np.int64)
    if size and buffer[size - 1] != ord("\n"):
        ends = np.append(ends, size)
    return np.concatenate([[0], ends[:-1] + 1])[: len(ends)].astype(np.int64), ends
