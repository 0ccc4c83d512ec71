"""PyTorch's pickled files (``.bin``, ``.pt``), read without PyTorch and without running them.

A pickle is a program. This one may only name the few functions below, which build descriptions of
tensors and nothing else; whatever else it names ends the reading (``weights_only``, and stricter:
no tensor is made). Both of PyTorch's forms are known: the zip archive (since 1.6) and the sequence
of pickles before it. Formats: torch/serialization.py.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from convert.tensors import BFLOAT16, FileTensor
from glm_jax.errors import UserError

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "UntypedStorage": np.dtype(np.uint8),
}
_DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
# Parts of training states (random states, arguments) that stand beside the weights in THUDM/GLM's
# own checkpoints: kept as inert descriptions.
_INERT = {
    ("argparse", "Namespace"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("torch", "device"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_PICKLE = 1 << 28


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    numel: int


class _View(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


class Inert:
    """Stands for an object that is neither made nor needed."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.args, self.state = args, {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...


class _Refused(Exception):
    """The pickle names something that is not on the list."""


def _load(file: BinaryIO) -> Any:
    """The next pickle of a stream, read twice: an unpickler believes a damaged memo index and
    allocates memory up to it."""
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in _PUTS and int(argument) > count:
            raise pickle.UnpicklingError(f"memo index {argument} after {count} instructions")
    file.seek(start)
    return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        found = _BUILDERS.get((module, name))
        if found is not None:
            return found
        if (module, name) in _INERT:
            return Inert
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        # ("storage", type, key, place, number of elements[, view: legacy files only])
        kind, dtype, key, _, numel = pid[:5]
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(numel, int):
            raise pickle.UnpicklingError(f"storage {str(pid)[:60]}")
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("views of storages, which PyTorch stopped writing in 2017")
        return _Storage(str(key), dtype, numel)


def _rebuild(storage: _Storage, offset: int, shape, strides, *_: Any) -> _View:
    return _View(storage, int(offset), tuple(shape), tuple(strides), storage.dtype)


def _rebuild_v3(storage, offset, shape, strides, _grad, _hooks, dtype, *_: Any) -> _View:
    return _View(storage, int(offset), tuple(shape), tuple(strides), dtype)


_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *_: collections.OrderedDict(),
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda func, _type, args, _state: func(*args),
    ("torch.nn.parameter", "Parameter"): lambda data=None, *_: data,
}


class Pickled(NamedTuple):
    """The tensors of a file by name, and the object that they stood in."""

    tensors: dict[str, FileTensor]
    content: Any


def read_pickled(path: Path) -> Pickled:
    """The tensors of a state dict, or of the ``module`` or ``state_dict`` inside a training state.

    Raises:
      UserError: not such a file, cut short, or its pickle names what no checkpoint needs.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        content, places = _read_zip(path) if zipped else _read_legacy(path)
        return Pickled(dict(_tensors(path, content, places)), content)
    except _Refused as refused:
        raise UserError(f"{path} carries code: its pickle asks for {refused}, which no checkpoint "
                        "needs; nothing of it was run") from None  # fmt: skip
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or no PyTorch checkpoint ({reason}); "
                        "download it again") from None  # fmt: skip


def _read_zip(path: Path):
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        main = [name for name in entries if name.rsplit("/", 1)[-1] == "data.pkl"]
        if len(main) != 1:
            raise UserError(f"{path} is a zip archive but no PyTorch checkpoint: no data.pkl")
        root = main[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in entries or any(n.startswith(f"{root}code/") for n in entries):
            raise UserError(f"{path} is a TorchScript program, not a checkpoint of weights")
        order = entries.get(f"{root}byteorder")
        if order is not None and archive.read(order).strip() not in (b"little", b""):
            raise UserError(f"{path} was written on a big-endian machine")
        if entries[main[0]].file_size > _MAX_PICKLE:
            raise UserError(f"{path}: its data.pkl of {entries[main[0]].file_size} bytes is absurd")
        content = _load(io.BytesIO(archive.read(main[0])))

    def place(storage: _Storage) -> tuple[int, int]:
        info = entries[f"{root}data/{storage.key}"]
        if info.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path}: its numbers are compressed, which PyTorch never does")
        with open(path, "rb") as file:  # the local header has its own lengths
            file.seek(info.header_offset)
            local = file.read(30)
        names, extra = struct.unpack("<HH", local[26:30])
        return info.header_offset + 30 + names + extra, info.file_size

    return content, place


def _read_legacy(path: Path):
    size = path.stat().st_size
    if size > 64:
        with open(path, "rb") as start:
            head = start.read(64)
        if head.startswith(b"version https://git-lfs"):
            raise UserError(f"{path} is a Git LFS pointer, not the weights; run git lfs pull")
    with open(path, "rb") as file:
        if _load(file) != _LEGACY_MAGIC:
            raise UserError(f"{path} is no PyTorch checkpoint")
        _load(file)  # protocol version
        if not _load(file).get("little_endian", True):
            raise UserError(f"{path} was written on a big-endian machine")
        content = _load(file)
        keys = _load(file)
        dtypes = {s.key: s.dtype for s in _storages(content)}
        places, at = {}, file.tell()
        for key in map(str, keys):
            file.seek(at)
            (numel,) = struct.unpack("<q", file.read(8))
            length = numel * dtypes[key].itemsize
            places[key] = (at + 8, length)
            at += 8 + length
    return content, lambda storage: places[storage.key]


def _storages(content: Any) -> Iterator[_Storage]:
    stack, seen = [content], set()
    while stack:
        item = stack.pop()
        if isinstance(item, _View):
            yield item.storage
        elif isinstance(item, _Storage):
            yield item
        elif id(item) not in seen and isinstance(item, Mapping | list | tuple | Inert):
            seen.add(id(item))
            if isinstance(item, Mapping):
                stack += item.values()
            elif isinstance(item, Inert):
                stack += [item.args, item.state]
            else:
                stack += item


def _tensors(path: Path, content: Any, place: Callable[[_Storage], tuple[int, int]]):
    state = content
    for key in ("module", "state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}, not tensors by name")
    size = path.stat().st_size
    for name, view in _named_views(state):
        begin, length = place(view.storage)
        last = 1 + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
        last = 0 if 0 in view.shape else last
        sane = all(isinstance(n, int) and n >= 0 for n in (*view.shape, *view.strides, view.offset))
        if not sane or (view.offset + last) * view.dtype.itemsize > length:
            raise UserError(f"{path} is damaged: {name} of {list(view.shape)} lies outside its "
                            f"{length} bytes")  # fmt: skip
        if begin + length > size:
            raise UserError(f"{path} is cut short: {size} bytes, but {name} ends at "
                            f"{begin + length}; download it again")  # fmt: skip
        offset = begin + view.offset * view.dtype.itemsize
        strides = None if _c_order(view) else view.strides
        yield name, FileTensor(path, offset, view.shape, view.dtype, strides)


def _named_views(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, _View]]:
    """Tensors by dotted name; the language model of THUDM/GLM's older files is a nested dict."""
    for key, value in state.items():
        if isinstance(value, _View):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _named_views(value, f"{prefix}{key}.")


def _c_order(view: _View) -> bool:
    step = 1
    for n, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return True
