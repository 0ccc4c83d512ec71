"""What ptxas and the disassembler say of the kernels whose PTX XLA has left in a folder."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

from benchmarks.attention.gpus import tool

_LABEL = re.compile(r"\s*\.(L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
_BACK = re.compile(r"\bBRA\b.*`\(\.(L_x_\d+)\)")
# The instructions of the matrix units: Ampere's, Hopper's, Blackwell's.
_PRODUCT = re.compile(r"\b(HMMA|HGMMA|UTCHMMA)\b")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One compiled kernel."""

    warps: int
    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of a thread that are written to memory for want of registers."""
    loops: tuple[int, ...]
    """Instructions of each of its loops with products."""

    def instructions(self, loop: int, pairs: int) -> float:
        """Cycles of a core's four schedulers for 1,024 pairs, where a turn of this many
        instructions computes ``pairs``."""
        return round(loop * self.warps / 4 * 1024 / pairs, 1)


def kernels(folder: Path, prefix: str) -> dict[str, Kernel]:
    """Those whose names begin so, by the rest of the name."""
    found = {}
    for path in sorted(folder.glob("*.ptx")):
        text = path.read_text()
        if named := re.search(rf"\.entry {prefix}(\w+)", text):
            found[named[1]] = _kernel(path, text)
    return found


def _kernel(path: Path, ptx: str) -> Kernel:
    binary = path.with_suffix(".cubin")
    (arch,) = re.findall(r"\.target (sm_\w+)", ptx)
    words = [tool("ptxas"), "-v", f"-arch={arch}", str(path), "-o", str(binary)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    listing = subprocess.run(
        [tool("nvdisasm"), "-c", str(binary)], capture_output=True, text=True, check=True
    ).stdout
    number = lambda pattern, text: int(re.findall(pattern, text)[0])
    return Kernel(
        warps=number(r"\.reqntid (\d+)", ptx) // 32,
        registers=number(r"Used (\d+) registers", said),
        spilled=number(r"(\d+) bytes spill stores", said),
        loops=tuple(product_loops(listing)),
    )


def product_loops(listing: str) -> list[int]:
    """Instructions of each stretch that ends with a jump back and holds matrix products."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    sizes = []
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := _INSTRUCTION.search(line):
            instructions.append(instruction[1])
            back = _BACK.search(instruction[1])
            if back and back[1] in labels:
                body = instructions[labels[back[1]] :]
                if any(_PRODUCT.search(x) for x in body):
                    sizes.append(len(body))
    return sizes
