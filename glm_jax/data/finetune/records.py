"""The examples of files as a random-access sequence, checked when it is opened, split by hash."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from glm_jax.data.finetune.forms import Pair
from glm_jax.data.finetune.lines import Lines
from glm_jax.data.sources import files, readers
from glm_jax.errors import UserError

_log = logging.getLogger(__name__)
Read = Callable[[bytes], Any]
"""What a line says, such as ``forms.Content``; raises UserError, which need not name the line."""
ENDINGS = (".source", ".target")


class Record(NamedTuple):
    """One example: where it stands, and what it says."""

    place: str
    content: Any
    """What the reader made of it, such as ``forms.Content``."""
    part: int = 0
    """Index into ``PARTS``: which data set it is from."""


class _Jsonl:
    """The lines of one JSONL file."""

    def __init__(self, path: Path, read: Read):
        self._lines, self._read = Lines(path), read

    def __len__(self) -> int:
        return len(self._lines)

    def place(self, index: int) -> str:
        return self._lines.place(index)

    def raw(self, index: int) -> bytes:
        return self._lines[index]

    def content(self, index: int) -> Any:
        return self._read(self._lines[index])


class _Paired:
    """Two text files with one example a line (THUDM/GLM's ``customization`` task)."""

    def __init__(self, stem: Path):
        paths = [stem.with_name(stem.name + ending) for ending in ENDINGS]
        self._source, self._target = (Lines(path, keep_blank=True) for path in paths)
        if len(self._source) != len(self._target):
            raise UserError(
                f"{paths[0]} has {len(self._source)} lines and {paths[1].name} "
                f"{len(self._target)}; line n of one belongs to line n of the other"
            )

    def __len__(self) -> int:
        return len(self._source)

    def place(self, index: int) -> str:
        return self._source.place(index)

    def raw(self, index: int) -> bytes:
        return self._source[index] + b"\n" + self._target[index]

    def content(self, index: int) -> Pair:
        texts = []
        for name, lines in (("source", self._source), ("target", self._target)):
            try:
                texts.append(lines[index].decode("utf-8-sig").strip())
            except UnicodeDecodeError as error:
                raise UserError(f"invalid UTF-8 at byte {error.start} of its {name}") from None
            if not texts[-1]:
                raise UserError(f"its {name} is empty")
        return Pair(*texts)


class Records:
    """Examples: ``len(records)``, ``records[i] -> Record``; picklable, read lazily.

    Args:
      patterns: paths or globs of JSONL files, or stems of ``.source`` and ``.target``.
      read: reads a line of JSON.
      skip_bad: leaves out, with a warning, what cannot be read; else it is an error.
      part: ``Record.part`` of each.
      check: what else an example must stand; raises UserError.

    Raises:
      UserError: no such file, or an example is bad; the message names file and line.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        read: Read,
        *,
        skip_bad: bool = False,
        part: int = 0,
        check: Callable[[Any], None] | None = None,
    ):
        self.label, self._part = " ".join(patterns), part
        self._files = [_open(path, read) for pattern in patterns for path in find(pattern)]
        self._begins = np.cumsum([0, *map(len, self._files)]).tolist()
        self.skipped = 0
        kept, hashes = [], []
        for index in range(self._begins[-1]):
            if self._fits(index, skip_bad, check):
                kept.append(index)
                hashes.append(self._hash(index))
        if not kept:
            raise UserError(f"{self.label}: there is no example in it")
        self._kept = np.array(kept, np.int64)
        self._hashes = np.array(hashes, np.uint64)

    def _fits(self, index: int, skip_bad: bool, check: Callable[[Any], None] | None) -> bool:
        try:
            content = self._record(index).content
            if check is not None:
                with self._named(index):
                    check(content)
        except UserError as error:
            if not skip_bad:
                raise UserError(f"{error} (on_bad skip leaves bad lines out)") from None
            self.skipped += 1
            _log.warning("skipped: %s", error)
            return False
        return True

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: SupportsIndex) -> Record:
        return self._record(int(self._kept[index]))

    def split(self, percent: float) -> tuple[Records, Records]:
        """The examples without and with those held out: the given share, those of least hash.

        The same examples are held out whatever their order; copies fall on the same side.

        Raises:
          UserError: nothing would be left on one side.
        """
        count = max(1, round(len(self) * percent / 100))
        held = self._hashes <= np.sort(self._hashes)[count - 1]
        if held.all():
            raise UserError(
                f"{self.label}: of {len(self)} examples {percent:g} % are to be held out, and "
                "nothing is left to train on"
            )
        return self.only(~held), self.only(held)

    @property
    def fingerprint(self) -> str:
        """Of the lines, and of their order."""
        return hashlib.sha256(self._hashes.tobytes()).hexdigest()[:16]

    def only(self, chosen: np.ndarray) -> Records:
        """Some of the examples: those at these indices, or where a mask is true."""
        part = object.__new__(Records)
        vars(part).update(vars(self), _kept=self._kept[chosen], _hashes=self._hashes[chosen])
        return part

    def _find(self, index: int) -> tuple[_Jsonl | _Paired, int]:
        at = bisect.bisect_right(self._begins, index) - 1
        return self._files[at], index - self._begins[at]

    def _record(self, index: int) -> Record:
        file, line = self._find(index)
        with self._named(index):
            return Record(file.place(line), file.content(line), self._part)

    @contextlib.contextmanager
    def _named(self, index: int) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            file, line = self._find(index)
            raise UserError(f"{file.place(line)}: {error}") from None

    def _hash(self, index: int) -> int:
        file, line = self._find(index)
        digest = hashlib.blake2b(file.raw(line), digest_size=8).digest()
        return int.from_bytes(digest, "little")


def find(pattern: str) -> list[Path]:
    """The files of a pattern, each pair as its stem.

    Raises:
      UserError: there are none, or one is neither.
    """
    stem = Path(pattern).expanduser()
    pair = [stem.with_name(stem.name + ending) for ending in ENDINGS]
    if any(path.is_file() for path in pair):
        for path in pair:
            if not path.is_file():
                raise UserError(f"{path} is missing; {pattern} is a pair of files")
        return [stem]
    paths = files.find(pattern)
    for path in paths:
        if readers.kind(path) != ".jsonl":
            raise UserError(f"{path}: fine-tuning data is .jsonl (also .gz or .zst)")
    return paths


def _open(path: Path, read: Read) -> _Jsonl | _Paired:
    return _Jsonl(path, read) if readers.kind(path) == ".jsonl" else _Paired(path)
