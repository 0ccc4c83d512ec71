"""Writing ``.safetensors`` shards at known places, in any order and from several threads.

The library's writer needs all of a shard in memory at once; here the headers go first.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.readers.safetensors_file import NAMES
from glm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plot:
    """The place of one tensor: a file, and a byte within it."""

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    plots: dict[str, Plot]
    headers: dict[str, bytes]
    """File name to all that stands before the numbers."""

    @property
    def num_bytes(self) -> int:
        return sum(plot.num_bytes for plot in self.plots.values())

    @property
    def index(self) -> dict[str, Any] | None:
        """The contents of ``model.safetensors.index.json``; None for a single file."""
        if len(self.headers) < 2:
            return None
        where = {name: plot.file for name, plot in sorted(self.plots.items())}
        return {"metadata": {"total_size": self.num_bytes}, "weight_map": where}


def plan_shards(
    tensors: Sequence[tuple[str, tuple[int, ...], np.dtype]], shard_size: int
) -> ShardPlan:
    """Fills files of at most ``shard_size`` bytes in order; a larger tensor has one to itself.

    Raises:
      UserError: a shard size that is not positive.
    """
    if shard_size < 1:
        raise UserError(f"--shard-size is {shard_size}; it must be positive, such as 5GB")
    groups: list[list[int]] = [[]]
    room = shard_size
    sizes = [math.prod(shape) * dtype.itemsize for _, shape, dtype in tensors]
    for i, size in enumerate(sizes):
        if size > room and groups[-1]:
            groups.append([])
            room = shard_size
        groups[-1].append(i)
        room -= size
    plots, headers = {}, {}
    for number, group in enumerate(groups, 1):
        file = "model.safetensors"
        if len(groups) > 1:
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for i in group:
            name, shape, dtype = tensors[i]
            entries[name] = {
                "dtype": NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [at, at + sizes[i]],
            }
            at += sizes[i]
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        headers[file] = len(text).to_bytes(8, "little") + text
        for i in group:
            name, shape, dtype = tensors[i]
            begin = len(headers[file]) + entries[name]["data_offsets"][0]
            plots[name] = Plot(file, begin, tuple(shape), dtype)
    return ShardPlan(plots, headers)


def write_headers(root: Path, plan: ShardPlan) -> None:
    """Makes the files at their full length, so that a full disk shows at once."""
    ends: dict[str, int] = {}
    for plot in plan.plots.values():
        ends[plot.file] = max(ends.get(plot.file, 0), plot.offset + plot.num_bytes)
    for file, header in plan.headers.items():
        with open(root / file, "wb") as out:
            out.write(header)
            out.truncate(ends[file])


def write_at(root: Path, plot: Plot, start_row: int, block: np.ndarray) -> None:
    """Puts rows of a tensor in their place."""
    row = math.prod(plot.shape[1:]) * plot.dtype.itemsize
    data = memoryview(np.ascontiguousarray(block).reshape(-1).view(np.uint8))
    at = plot.offset + start_row * row
    handle = os.open(root / plot.file, os.O_WRONLY)
    try:
        while data:
            done = os.pwrite(handle, data, at)
            data, at = data[done:], at + done
    finally:
        os.close(handle)
