"""The parameters on disk, a piece at a time: Orbax's format, never a whole model in memory.

Orbax writes the description of the tree; the numbers go into its Zarr arrays piece by piece through
TensorStore, one chunk to a layer, uncompressed (weights hardly compress, and copying is faster).
``glm_jax.load`` reads the result like any other checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers

from convert.table import LAYERS, Part
from glm_jax.errors import UserError, first_line

CHUNK_BYTES = 64 << 20
Shape = tuple[int, ...]


class _Later:
    """A parameter whose numbers are written after Orbax is done."""

    def __init__(self, name: str):
        self.name = name


class _LaterHandler(type_handlers.TypeHandler):
    def typestr(self) -> str:
        return "np.ndarray"

    async def serialize(self, values, infos, args=None):
        return []

    async def deserialize(self, infos, args=None):
        raise NotImplementedError

    async def metadata(self, infos):
        raise NotImplementedError


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's warnings that nothing was written: that comes later."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def lead_rows(name: str, shape: Shape, dtype: np.dtype, chunk_bytes: int = CHUNK_BYTES) -> int:
    """First-axis length (behind the layer axis) of a stored chunk."""
    inner = shape[1:] if name.startswith(LAYERS) else shape
    row = int(np.prod(inner[1:], dtype=np.int64)) * dtype.itemsize
    most = max(1, min(inner[0], chunk_bytes // max(row, 1)))
    return -(-inner[0] // -(-inner[0] // most))  # even chunks: Zarr pads the last one


class ParamsWriter:
    """Writes ``params/`` below a directory.

    Args:
      targets: shape and type of every parameter by dotted name.
      chunk_bytes: the largest piece of a parameter in one file.
    """

    def __init__(
        self,
        root: Path,
        targets: Mapping[str, tuple[Shape, np.dtype]],
        chunk_bytes: int = CHUNK_BYTES,
    ):
        self.targets = dict(targets)
        self.lead = {name: lead_rows(name, *spec, chunk_bytes) for name, spec in targets.items()}
        self._path = root / "params"
        self._open: dict[str, ts.TensorStore] = {}
        self._sums = dict.fromkeys(self.targets, 0)
        self._lock = threading.Lock()
        # Syncing every chunk would wait for the disk; what a power cut loses, checksums.json shows.
        self._context = ts.Context({"file_io_sync": False, "cache_pool": {"total_bytes_limit": 0}})
        tree: dict[str, Any] = {}
        for name in self.targets:
            *parents, last = name.split(".")
            node = tree
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = _Later(name)
        registry = type_handlers.create_type_handler_registry((_Later, _LaterHandler()))
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
        with _quiet(), ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(self._path, tree)

    def write(self, part: Part, x: np.ndarray) -> None:
        """Puts an array of the parameter's type in its place."""
        store = self._store(part.name)
        at = store[part.layer, part.start : part.stop] if part.layer is not None else (
            store[part.start : part.stop]
        )  # fmt: skip
        at.write(x, can_reference_source_data_indefinitely=True).result()
        total = word_sum(x)
        with self._lock:
            self._sums[part.name] = (self._sums[part.name] + total) & 0xFFFFFFFF

    def checksums(self) -> dict[str, int]:
        """As ``glm_jax.ckpts.checksums`` counts them."""
        return dict(self._sums)

    def _store(self, name: str) -> ts.TensorStore:
        with self._lock:
            if name not in self._open:
                shape, dtype = self.targets[name]
                layered = name.startswith(LAYERS)
                inner = shape[1:] if layered else shape
                chunk = [1] * layered + [self.lead[name], *inner[1:]]
                spec = {
                    "driver": "zarr",
                    "kvstore": {"driver": "file", "path": str(self._path / name) + "/"},
                    "metadata": {
                        "shape": list(shape),
                        "chunks": chunk,
                        "dtype": "bfloat16" if dtype.kind == "V" else dtype.str,
                        "compressor": None,
                    },
                    "create": True,
                    "store_data_equal_to_fill_value": True,
                }
                self._open[name] = ts.open(spec, context=self._context).result()
            return self._open[name]


def word_sum(x: np.ndarray) -> int:
    """Sum of an array's words (of at most four bytes) modulo 2**32."""
    words = np.ascontiguousarray(x).reshape(-1).view(f"u{min(x.dtype.itemsize, 4)}")
    return int(words.sum(dtype=np.uint32))


class ParamsReader:
    """Reads pieces of a ``params/`` that Orbax or ``ParamsWriter`` wrote.

    Raises:
      UserError: it is missing or unreadable.
    """

    def __init__(self, root: Path):
        self._path = root / "params"
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                tree = checkpointer.metadata(self._path).item_metadata.tree
            meta = json.loads((self._path / "_METADATA").read_text())
        except Exception as error:  # Orbax raises many types
            raise UserError(f"{self._path} cannot be read: {first_line(error)}") from None
        self.specs: dict[str, tuple[Shape, np.dtype]] = {}
        self._leaves(tree, "")
        self._ocdbt = (self._path / "manifest.ocdbt").exists()
        self._driver = "zarr3" if meta.get("use_zarr3") else "zarr"
        self._open: dict[str, ts.TensorStore] = {}
        self._lock = threading.Lock()
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})

    def _leaves(self, node: Any, prefix: str) -> None:
        for key, value in dict(node).items():
            if isinstance(value, Mapping):
                self._leaves(value, f"{prefix}{key}.")
            else:
                self.specs[f"{prefix}{key}"] = (tuple(value.shape), np.dtype(value.dtype))

    def read(self, part: Part) -> np.ndarray:
        """The numbers of a part.

        Raises:
          UserError: they cannot be read.
        """
        try:
            store = self._store(part.name)
            rows = slice(part.start, part.stop)
            at = store[rows] if part.layer is None else store[part.layer, rows]
            return np.asarray(at.read().result())
        except (ValueError, OSError) as error:
            path = self._path / part.name
            raise UserError(f"{path} is damaged: {first_line(error)}") from None

    def _store(self, name: str) -> ts.TensorStore:
        with self._lock:
            if name not in self._open:
                if self._ocdbt:
                    base = {"driver": "file", "path": f"{self._path}/"}
                    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
                else:
                    kvstore = {"driver": "file", "path": f"{self._path}/{name}/"}
                spec = {
                    "driver": self._driver,
                    "kvstore": kvstore,
                    "fill_missing_data_reads": False,
                }
                self._open[name] = ts.open(spec, context=self._context, read=True).result()
            return self._open[name]
