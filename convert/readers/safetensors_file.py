"""``.safetensors``: eight bytes of header length, a JSON header, the numbers.

The library's own reader maps the whole file; this one needs the places alone (``convert.tensors``).
Format: the safetensors README.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np

from convert.tensors import BFLOAT16, FileTensor
from glm_jax.errors import UserError

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # the library's own limit


def read_safetensors(path: Path) -> tuple[dict[str, FileTensor], list[str]]:
    """Every tensor of the file by name, and the names that its header holds twice.

    Raises:
      UserError: the file is no safetensors file, cut short, or its header does not describe it.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
            raise UserError(f"{path} is no safetensors file, or cut short: {size} bytes with a "
                            f"header of {length}")  # fmt: skip
        raw = file.read(length)
    twice: list[str] = []
    try:
        header = json.loads(raw, object_pairs_hook=lambda pairs: _note_twice(pairs, twice))
    except (ValueError, RecursionError):
        raise UserError(f"{path} has a damaged header: not JSON; download it again") from None
    if not isinstance(header, dict):
        raise UserError(f"{path} has a damaged header: not a JSON object; download it again")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, 8 + length, size, name, entry) for name, entry in header.items()}
    return tensors, [name for name in twice if name in tensors]


def _note_twice(pairs, twice: list[str]) -> dict:
    seen: dict = {}
    for key, value in pairs:
        if key in seen:
            twice.append(key)
        seen[key] = value
    return seen


def _tensor(path: Path, base: int, size: int, name: str, entry) -> FileTensor:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        whole, dtype, shape, begin, end = False, None, (), 0, 0
    if not whole:
        raise UserError(f"{path} has a damaged header: the entry of {name} is {str(entry)[:80]}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{path}: {name} has type {dtype!r}; known are {', '.join(DTYPES)}")
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise UserError(f"{path} has a damaged header: {name} of {dtype} {list(shape)} lies on "
                        f"{end - begin} bytes")  # fmt: skip
    if base + end > size:
        raise UserError(f"{path} is cut short: {size} bytes, but {name} ends at {base + end}; "
                        "download it again")  # fmt: skip
    return FileTensor(path, base + begin, shape, DTYPES[dtype])
