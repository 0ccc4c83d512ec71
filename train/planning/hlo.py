"""Optimized HLO text as data: computations, instructions, shapes, and how often a loop runs.

The text is that of ``compiled.as_text()``; its grammar is not documented beyond XLA's own printer
(openxla/xla hlo_instruction.cc), so only what planning needs is read, and unknown parts are kept as
text.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?(\S+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?(\S+) = (.*)$")
_OPCODE = re.compile(r"([a-z][a-z0-9-]*)\(")


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    """Names in the same computation; a constant's or a parameter's literal."""
    attributes: str
    """All behind the operands: called computations, metadata, backend_config."""

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute such as ``body`` or ``calls`` names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate for one execution; None where it made none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @property
    def source(self) -> str:
        """Where the program asked for it (``op_name``), for a person."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else self.name


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction


@dataclasses.dataclass(frozen=True)
class Module:
    computations: Mapping[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """The module in ``compiled.as_text()``.

    Raises:
      ValueError: there is no entry computation in it.
    """
    text = re.sub(r'(?<=[{,])\n(?=")|(?<=")\n(?=\})', "", text)  # a kernel's metadata, on one line
    computations: dict[str, Computation] = {}
    entry, header, found, root = None, None, {}, None
    for line in text.splitlines():
        if header is None:
            header = _HEADER.match(line)
            found, root = {}, None
        elif line.startswith("}"):
            if root is not None:
                computation = Computation(header[2], found, root)
                computations[header[2]] = computation
                entry = computation if header[1] else entry
            header = None
        elif match := _LINE.match(line):
            instruction = _instruction(match[2], match[3])
            if instruction is not None:
                found[instruction.name] = instruction
                root = instruction if match[1] else root
    if entry is None:
        raise ValueError("no ENTRY computation: this is not the text of an HLO module")
    return Module(computations, entry)


def _instruction(name: str, text: str) -> Instruction | None:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    match = _OPCODE.match(text[end:].lstrip())
    if match is None:
        return None
    begin = text.index(match[0], end) + len(match[0])
    close = _closing(text, begin - 1)
    inside = re.sub(r"/\*.*?\*/", "", text[begin:close])
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or ((inside,) if inside else ())
    return Instruction(name, text[:end], match[1], operands, text[close + 1 :])


def _closing(text: str, at: int) -> int:
    """The index of the parenthesis that closes the one at ``at``."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def shape_bytes(shape: str) -> int:
    """Bytes of an array or tuple type as printed, without the padding of its layout."""
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        digits = re.search(r"\d+", kind)
        bits = BITS[kind] if kind in BITS else int(digits[0]) if digits else 0
        total += math.prod(int(n) for n in sizes.split(",") if n) * bits
    return -(-total // 8)
