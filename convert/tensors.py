"""Tensors of a released checkpoint that are read from disk only when, and as far as, needed.

Files are read by position rather than mapped: touched pages of a mapping count as resident memory,
and a conversion must stay small whatever the size of its input.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np

from glm_jax.errors import UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)


class Tensor(Protocol):
    """Something with a shape and a type whose rows can be read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def file(self) -> Path:
        """Where it is stored: for messages."""
        ...

    def rows(self, start: int, stop: int) -> np.ndarray:
        """``x[start:stop]`` along the first axis."""
        ...


def read_all(x: Tensor) -> np.ndarray:
    """The whole tensor."""
    return x.rows(0, x.shape[0]) if x.shape else x.rows(0, 1)


def num_bytes(x: Tensor) -> int:
    return math.prod(x.shape) * x.dtype.itemsize


def is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype == BFLOAT16


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """Numbers at a place in a file, in C order unless strides (in elements) say otherwise."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...] | None = None

    def rows(self, start: int, stop: int) -> np.ndarray:
        if self.strides is not None:
            return self._strided()[start:stop] if self.shape else self._strided()
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        data = read_bytes(self.file, self.offset + start * row, (stop - start) * row)
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        return data.view(self.dtype).reshape(shape)

    def _strided(self) -> np.ndarray:
        assert self.strides is not None
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        steps = zip(self.shape, self.strides, strict=True)
        span = 1 + sum((n - 1) * s for n, s in steps)
        flat = read_bytes(self.file, self.offset, span * self.dtype.itemsize).view(self.dtype)
        strides = tuple(s * self.dtype.itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)


def read_bytes(path: Path, offset: int, count: int) -> np.ndarray:
    """``count`` bytes of a file from ``offset`` on.

    Raises:
      UserError: the file ends before that.
    """
    out = np.empty(count, np.uint8)
    view, done = memoryview(out), 0
    with open(path, "rb", buffering=0) as file:
        while done < count:
            got = os.preadv(file.fileno(), [view[done:]], offset + done)
            if not got:
                raise UserError(
                    f"{path} is cut short: it ends at byte {offset + done}, within a tensor that "
                    f"ends at {offset + count}; download it again"
                )
            done += got
    return out


@dataclasses.dataclass(frozen=True)
class Dequantized:
    """``scale * q`` per row of integers, two to a byte where ``packed`` (even column high).

    In float32: a float16 scale times an integer has more digits than float16.
    """

    q: Tensor
    scale: Tensor
    packed: bool
    dtype: np.dtype = FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        *lead, last = self.q.shape
        return (*lead, last * 2 if self.packed else last)

    @property
    def file(self) -> Path:
        return self.q.file

    def rows(self, start: int, stop: int) -> np.ndarray:
        q = self.q.rows(start, stop)
        scale = self.scale.rows(start, stop).astype(np.float32)
        return (unpack_int4(q) if self.packed else q).astype(np.float32) * scale[:, None]


def unpack_int4(packed: np.ndarray) -> np.ndarray:
    """int8 [..., C/2] -> int8 [..., C]: the even column is in the high half, both are signed."""
    packed = packed.view(np.int8)
    high, low = packed >> 4, (packed << 4).astype(np.int8) >> 4
    return np.stack([high, low], axis=-1).reshape(*packed.shape[:-1], -1)


@dataclasses.dataclass(frozen=True)
class Merged:
    """One matrix from the parts that model-parallel ranks hold.

    Args:
      blocks: (rank, first row, end row) in the merged order, for parts split by rows; None for
        parts split by columns.
    """

    parts: Sequence[Tensor]
    blocks: tuple[tuple[int, int, int], ...] | None

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        if self.blocks is None:
            return (first[0], sum(p.shape[1] for p in self.parts))
        return (sum(p.shape[0] for p in self.parts), *first[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    @property
    def file(self) -> Path:
        return self.parts[0].file

    def rows(self, start: int, stop: int) -> np.ndarray:
        if self.blocks is None:
            return np.concatenate([p.rows(start, stop) for p in self.parts], axis=1)
        pieces, at = [], 0
        for rank, lo, hi in self.blocks:
            a, b = max(start - at, 0), min(stop - at, hi - lo)
            if a < b:
                pieces.append(self.parts[rank].rows(lo + a, lo + b))
            at += hi - lo
        return np.concatenate(pieces)


@dataclasses.dataclass(frozen=True)
class InMemory:
    """An array that is there already."""

    array: np.ndarray
    file: Path = Path("memory")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop] if self.shape else self.array
