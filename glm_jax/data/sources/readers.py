"""Texts out of local files: ``.txt``, ``.jsonl`` (each also ``.gz``, ``.zst``) and ``.parquet``."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import zstandard

SUFFIXES = (".txt", ".jsonl", ".parquet")
_CHUNK = 1 << 20
# A text file is cut at the first line end past this many bytes: far more than any row of tokens,
# and little enough that one document is tokenized at a glance.
TXT_DOCUMENT_BYTES = 1 << 16


class BadRecordError(Exception):
    """A record that gives no text: which file, which record, why, and whether the file goes on."""

    def __init__(self, path: Path, record: str, reason: str, *, fatal: bool = False):
        super().__init__(f"{path}{', ' if record else ''}{record}: {reason}")
        self.fatal = fatal  # nothing after this record of the file can be read


Record = tuple[str, str | BadRecordError]  # ("line 12", text or what is wrong with it)


def kind(path: Path) -> str:
    """The format that a file's name says, without its compression; "" if it is none of ours."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    suffix = Path(name).suffix
    compressed = name != path.name
    return suffix if suffix in SUFFIXES and not (compressed and suffix == ".parquet") else ""


def read(path: Path, text_field: str) -> Iterator[Record]:
    """Every record of a file; problems are yielded in their place, not raised."""
    reader = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[kind(path)]
    if path.stat().st_size == 0:
        yield "", BadRecordError(path, "", "the file is empty", fatal=True)
        return
    try:
        yield from reader(path, text_field)
    except BadRecordError as error:
        yield "", error


def _read_txt(path: Path, text_field: str) -> Iterator[Record]:
    del text_field
    lines: list[bytes] = []
    first = number = 1
    size = 0
    for number, line in numbered_lines(path):
        lines.append(line)
        size += len(line)
        if size >= TXT_DOCUMENT_BYTES:
            yield _decoded(path, f"lines {first} to {number}", b"".join(lines))
            lines, first, size = [], number + 1, 0
    if lines:
        yield _decoded(path, f"lines {first} to {number}", b"".join(lines))


def _read_jsonl(path: Path, text_field: str) -> Iterator[Record]:
    for number, line in numbered_lines(path):
        if line.strip():
            record = f"line {number}"
            _, text = _decoded(path, record, line)
            yield (
                record,
                text if isinstance(text, Exception) else _field(path, record, text, text_field),
            )


def _field(path: Path, record: str, line: str, text_field: str) -> str | BadRecordError:
    try:
        entry = json.loads(line)
    except ValueError as error:
        return BadRecordError(path, record, f"not JSON ({error})")
    if not isinstance(entry, dict):
        return BadRecordError(path, record, f"a JSON {type(entry).__name__}, not an object")
    if text_field not in entry:
        fields = ", ".join(list(entry)[:8]) or "none"
        return BadRecordError(path, record, f"no field {text_field!r}; its fields: {fields}")
    return _checked(path, record, entry[text_field], text_field)


def _checked(path: Path, record: str, value: object, text_field: str) -> str | BadRecordError:
    if not isinstance(value, str):
        found = type(value).__name__
        return BadRecordError(path, record, f"field {text_field!r} is {found}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        return BadRecordError(path, record, f"field {text_field!r} holds a lone surrogate")
    return value


def _read_parquet(path: Path, text_field: str) -> Iterator[Record]:
    try:
        with pa.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if text_field not in names:
                reason = f"no column {text_field!r}; its columns: {', '.join(names[:8])}"
                raise BadRecordError(path, "", reason, fatal=True)
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
                for cell in batch.column(0):
                    yield f"row {row}", _cell(path, f"row {row}", cell, text_field)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        reason = f"not a readable parquet file ({str(error).splitlines()[0]})"
        raise BadRecordError(path, "", reason, fatal=True) from error


def _cell(path: Path, record: str, cell: pa.Scalar, text_field: str) -> str | BadRecordError:
    try:
        value = cell.as_py()
    except UnicodeDecodeError as error:
        return BadRecordError(path, record, f"invalid UTF-8 ({error.reason})")
    if isinstance(value, bytes):
        return _decoded(path, record, value)[1]
    return _checked(path, record, value, text_field)


def _decoded(path: Path, record: str, raw: bytes) -> Record:
    try:
        return record, raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"invalid UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start} of it)"
        return record, BadRecordError(path, record, reason)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a plain or compressed file; a broken stream ends in a BadRecordError."""
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, 1):
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        reason = f"the compressed stream is truncated or damaged ({error})"
        raise BadRecordError(path, f"after line {number}", reason, fatal=True) from error


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdStream(path), _CHUNK)
    return path.open("rb")


class _ZstdStream(io.RawIOBase):
    """Frames of a zstd file as one stream. zstandard's own reader ends silently where the file was
    cut short; this one raises EOFError."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._fed = False  # the frame has begun
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._pending:
            chunk = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._fed = zstandard.ZstdDecompressor().decompressobj(), False
            chunk = chunk or self._file.read(_CHUNK)
            if not chunk:
                if self._fed:
                    raise EOFError("the last zstd frame has no end")
                return 0
            self._fed = True
            self._pending = self._frame.decompress(chunk)
        count = min(len(buffer), len(self._pending))
        buffer[:count], self._pending = self._pending[:count], self._pending[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
