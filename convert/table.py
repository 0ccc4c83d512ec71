"""Names and forms: what one released tensor holds of our parameters.

A released matrix is a stack of rows. ``Entry`` says which of our parameters those rows belong to:
one after the other (``[q | k | v]``), or taking turns head by head (``[q0 k0 v0 q1 k1 ..]``).
Both are views of the same memory, so one description serves both directions: reading takes the
views of a released block, writing fills the views of an empty one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

LAYERS = "layers."  # our parameters below this have a leading layer axis
# Kinds of parameters of a module and the ending of their released names.
KINDS = {
    "weight": "weight",
    "bias": "bias",
    "weight_q": "weight",
    "weight_scale": "weight_scale",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A module's released name and ours.

    ``{i}`` stands for the layer. ``*`` at the end of both stands for weight, bias and the integers
    and scales of a quantised weight: those that the model has.

    Args:
      fold: leading axes of ours (behind the layer) that the released rows run over: 2 for
        projections to heads [N, H, D].
      by_head: the parts take turns head by head.
      alias: the tensor repeats another one of ours (a tied head), and is written where true.
    """

    theirs: str
    ours: tuple[str, ...]
    fold: int = 1
    by_head: bool = False
    alias: bool = False


def entry(theirs: str, *ours: str, fold: int = 1, by_head: bool = False, alias: bool = False):
    return Entry(theirs, ours, fold, by_head, alias)


class Part(NamedTuple):
    """A range of one of our parameters, and where a block of released rows holds it."""

    name: str
    layer: int | None
    start: int
    stop: int


class Move(NamedTuple):
    """Released rows ``start:stop`` of one tensor and the parts of ours that they are."""

    start: int
    stop: int
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One released tensor, worked out for one model."""

    theirs: str
    names: tuple[str, ...]
    layer: int | None
    shapes: tuple[tuple[int, ...], ...]
    """Of our parameters, without the layer axis."""
    fold: int
    by_head: bool
    alias: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the released tensor."""
        rest = math.prod(self.shapes[0][self.fold :])
        rows = sum(math.prod(s[: self.fold]) for s in self.shapes)
        return (rows, rest) if len(self.shapes[0]) > self.fold else (rows,)

    def _rows_per_lead(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape[1 : self.fold])

    def moves(self, lead: Mapping[str, int]) -> Iterator[Move]:
        """Cuts the tensor where ``lead`` (first-axis length of a stored chunk, by name) says."""
        if self.by_head:
            heads, step = self.shapes[0][0], min(lead[name] for name in self.names)
            each = len(self.shapes) * self._rows_per_lead(self.shapes[0])
            for a in range(0, heads, step):
                b = min(a + step, heads)
                parts = tuple(Part(name, self.layer, a, b) for name in self.names)
                yield Move(a * each, b * each, parts)
            return
        base = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            each = self._rows_per_lead(shape)
            for a in range(0, shape[0], lead[name]):
                b = min(a + lead[name], shape[0])
                yield Move(base + a * each, base + b * each, (Part(name, self.layer, a, b),))
            base += shape[0] * each

    def views(self, block: np.ndarray, move: Move) -> list[np.ndarray]:
        """The block's rows as ours: one view per part of the move, writeable if the block is."""
        if self.by_head:
            shape = self.shapes[0]
            split = block.reshape(move.parts[0].stop - move.parts[0].start, len(self.names),
                                  *shape[1:])  # fmt: skip
            return [split[:, j] for j in range(len(self.names))]
        (part,) = move.parts
        shape = self.shapes[self.names.index(part.name)]
        return [block.reshape(part.stop - part.start, *shape[1:])]


def rules(entries: Sequence[Entry], shapes: Mapping[str, tuple[int, ...]]) -> list[Rule]:
    """The table for a model whose parameters have these shapes.

    An entry whose parameters the model does not have (a bias, a head) is left out, and so is the
    repeated embedding of a model whose head is its own.
    """
    found = []
    for e in entries:
        if e.alias and "head" in shapes:
            continue
        for theirs, names in _kinds(e):
            have = [name in shapes for name in names]
            if not all(have):
                continue
            stacked = names[0].startswith(LAYERS)
            inner = tuple(shapes[n][1:] if stacked else shapes[n] for n in names)
            layers = range(shapes[names[0]][0]) if stacked else (None,)
            for i in layers:
                name = theirs if i is None else theirs.replace("{i}", str(i))
                fold = min(e.fold, len(inner[0]))
                found.append(Rule(name, names, i, inner, fold, e.by_head, e.alias))
    return found


def _kinds(e: Entry) -> Iterator[tuple[str, tuple[str, ...]]]:
    if not e.theirs.endswith("*"):
        yield e.theirs, e.ours
        return
    for ours, theirs in KINDS.items():
        yield e.theirs[:-1] + theirs, tuple(name[:-1] + ours for name in e.ours)
