"""Files that are whole or absent."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes under another name first, so that a kill or a full disk leaves what was there."""
    temporary = path.parent / f".{path.name}.writing"
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)
