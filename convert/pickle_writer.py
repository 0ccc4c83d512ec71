"""Writing the ``.bin`` files that released code loads with ``torch.load``, without PyTorch.

A state dict of plain tensors needs a dozen of pickle's instructions. Format: the zip archive of
torch/serialization.py (since 1.6); read back by PyTorch itself in the tests.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.readers.pickled import STORAGES

_NAMES = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}


def write_pickled(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A state dict of these arrays.

    Raises:
      KeyError: a type that PyTorch had no storage for in 1.6.
    """
    body = [pickle.PROTO + b"\x02", _ordered_dict(), pickle.MARK]
    for number, (name, x) in enumerate(tensors.items()):
        body += [_text(name), _tensor(str(number), x)]
    body += [pickle.SETITEMS, pickle.STOP]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"".join(body))
        archive.writestr("archive/byteorder", "little")
        for number, x in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{number}", np.ascontiguousarray(x).tobytes())
        archive.writestr("archive/version", "3\n")


def _tensor(key: str, x: np.ndarray) -> bytes:
    strides, step = [], 1
    for size in reversed(x.shape):
        strides.insert(0, step)
        step *= size
    storage = _tuple(
        _text("storage"),
        _global("torch", _NAMES[x.dtype]),
        _text(key),
        _text("cpu"),
        _int(x.size),
    )
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _int(0),
        _tuple(*map(_int, x.shape)),
        _tuple(*map(_int, strides)),
        pickle.NEWFALSE,
        _ordered_dict(),
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _ordered_dict() -> bytes:
    return _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _int(number: int) -> bytes:
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data
