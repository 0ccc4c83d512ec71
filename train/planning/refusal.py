"""What the TPU compiler says when a program does not fit."""

from __future__ import annotations

import dataclasses
import re

UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGTB]?)"


@dataclasses.dataclass(frozen=True)
class Refusal:
    message: str
    """Its first line."""
    needed_bytes: int | None
    """Of HBM; early refusals count the temporaries alone. None where the message has no figure."""
    available_bytes: int | None
    whole: bool
    """``needed_bytes`` is all that the program needs, arguments included."""


def refusal(message: str) -> Refusal | None:
    """A refusal for want of memory; None where the message says something else.

    >>> refusal("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G "
    ...         "hbm. Exceeded hbm capacity by 1.75G.").needed_bytes / 2**30
    17.5
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    lines = message[message.index("RESOURCE_EXHAUSTED") :].splitlines()
    first = " ".join(lines[0].split())
    flat = " ".join(message.split())
    if found := re.search(rf"Used {_SIZE} of {_SIZE} hbm", flat):
        return Refusal(first, _bytes(*found.group(1, 2)), _bytes(*found.group(3, 4)), True)
    early = rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"
    if found := re.search(early, flat):
        return Refusal(first, _bytes(*found.group(1, 2)), _bytes(*found.group(3, 4)), False)
    return Refusal(first, None, None, False)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * UNITS[unit])
