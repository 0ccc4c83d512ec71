"""Reads a kernel's final schedule as the TPU compiler dumps it.

A bundle is what one TensorCore issues in one cycle. Loops and regions that a branch can skip nest;
how often each runs is not in the dump, so the parts are kept apart for the caller to weigh.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

_BUNDLE = re.compile(r"\s*(?:0x)?[0-9a-f]+\s+(?:[A-Z]{2})?\s*:[\s>]*\{")
_BRANCH = re.compile(r"sbr\.rel \([^)]*\) target = \$region(\d+)")
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
# Bundles after a branch that are issued in any case.
_DELAY = 4


@dataclasses.dataclass
class Part:
    """A run of bundles ``[start, stop)``: the program, a loop's body, or what a branch skips."""

    kind: str
    start: int
    stop: int
    inside: list[Part] = dataclasses.field(default_factory=list)

    @property
    def own(self) -> int:
        """Bundles that are in no part inside."""
        return self.stop - self.start - sum(part.stop - part.start for part in self.inside)

    def walk(self) -> Iterator[Part]:
        yield self
        for part in self.inside:
            yield from part.walk()

    @property
    def loops(self) -> list[Part]:
        """The loops right inside, through any branches around them."""
        found: list[Part] = []
        for part in self.inside:
            found += [part] if part.kind == "loop" else part.loops
        return found

    @property
    def guarded(self) -> list[Part]:
        """What branches skip in this part and that holds no loop and no other such part."""
        found: list[Part] = []
        for part in self.inside:
            if part.kind == "skip" and not part.loops:
                found += part.guarded or [part]
            elif part.kind == "skip":
                found += part.guarded
        return found

    @property
    def straight(self) -> int:
        """Bundles once through, without loops and what is guarded."""
        skipped = sum(p.own for p in self.guarded)
        return self.own + sum(_through(p) for p in self.inside if p.kind == "skip") - skipped


def _through(part: Part) -> int:
    return part.own + sum(_through(p) for p in part.inside if p.kind == "skip")


def parse(text: str) -> Part:
    """The schedule of one kernel.

    Args:
      text: of a ``...final_bundles.txt``.
    """
    size, jumps, regions = 0, [], {}
    for line in text.splitlines():
        size += bool(_BUNDLE.match(line))
        if not size:
            continue
        jumps += [(size - 1, int(n)) for n in _BRANCH.findall(line)]
        for n in _REGION.findall(line):
            regions.setdefault(int(n), size - 1)
    spans = []
    for at, region in jumps:
        target, after = regions.get(region, at), at + 1 + _DELAY
        if target < at:
            spans.append(("loop", target, after))
        elif target > after:
            spans.append(("skip", after, target))
    return _nest(spans, size)


def _nest(spans: list[tuple[str, int, int]], size: int) -> Part:
    root = Part("program", 0, size)
    open_parts = [root]
    for kind, start, stop in sorted(spans, key=lambda span: (span[1], -span[2])):
        while open_parts[-1].stop <= start:
            open_parts.pop()
        around = open_parts[-1]
        part = Part(kind, start, min(stop, around.stop))
        if part.stop > part.start:
            around.inside.append(part)
            open_parts.append(part)
    return root


def dumped(folder: Path) -> dict[str, Part]:
    """The schedules of the project's kernels below ``folder``, by HLO instruction."""
    found = {}
    for path in sorted(folder.glob("*range_attention*-final_bundles.txt")):
        name = re.fullmatch(r"\d+-(.*)-\d+-final_bundles", path.stem)
        if name is not None:
            found[name[1]] = parse(path.read_text())
    return found


def flags(folder: str) -> str:
    """``LIBTPU_INIT_ARGS`` that have the compiler write its schedules to ``folder``."""
    return (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
        "--xla_jf_dump_llo_pass_label_regex=final_bundles"
    )
