"""Local files by glob: which files, what they hold, and a name that changes when they do."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from pathlib import Path

from glm_jax.data.sources import readers
from glm_jax.errors import UserError


def find(pattern: str) -> list[Path]:
    """The files that a glob names (``**`` crosses folders), sorted.

    Raises:
      UserError: nothing matches, or a file's format is not known.
    """
    expanded = str(Path(pattern).expanduser())
    paths = sorted(Path(p) for p in glob.glob(expanded, recursive=True) if Path(p).is_file())
    if not paths:
        raise UserError(f"no file matches {pattern!r} (from the folder {Path.cwd()})")
    for path in paths:
        if not readers.kind(path):
            known = ".txt, .jsonl (both also .gz or .zst), .parquet"
            raise UserError(f"{path}: unknown format; the glob may only match {known}")
    return paths


def fingerprint(paths: list[Path], *options: object) -> str:
    """A short hash of the files' names, sizes and times of change, and of the options."""
    digest = hashlib.sha256(repr(options).encode())
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def documents(
    paths: list[Path], text_field: str, on_bad: str, skipped: list[str]
) -> Iterator[tuple[str, str]]:
    """Pairs (key, text) of all the files; blank texts are left out.

    Args:
      on_bad: "raise", or "skip" to count a bad record and go on.
      skipped: gets a line for every bad record that was left out.

    Raises:
      UserError: a record is bad and on_bad is "raise"; one line that names file and record.
    """
    for index, path in enumerate(paths):
        for record, text in readers.read(path, text_field):
            if isinstance(text, readers.BadRecordError):
                if on_bad == "raise":
                    raise UserError(f"{text} (--data.on-bad skip leaves bad records out)")
                skipped.append(str(text))
            elif text.strip():
                yield f"{index}/{record}", text
