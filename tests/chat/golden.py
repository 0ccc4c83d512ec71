"""The released code's chat cases, beside this checkout."""

import functools
import json
from typing import Any

import pytest

from tests.text.every import SHARED


@functools.cache
def golden(name: str) -> dict[str, Any]:
    """All cases of one released tokenizer; skips the test where they are absent."""
    path = SHARED / "golden" / "tokenizers" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"the released code's cases of {name} are not beside this checkout")
    return json.loads(path.read_text())
