"""The project's own Pallas kernels: their FLOPs and the cycles of their schedules, for causal rows.

Which keys a query sees is data, so both are counted as if each query saw all before it; where keys
are more than queries (a piece of a prompt), as if the piece lay in the middle of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glm_jax.ops.attention.tpu.blocks import Blocks
from glm_jax.ops.attention.tpu.tables import spans
from train.planning.schedule import Part

# Two products of a query and a key, and five when they are differentiated in one pass (scores and
# d_probs again, then d_v, d_q, d_k); two FLOPs a channel each (arXiv 2205.14135, algorithms 1, 4).
FLOPS_PER_CHANNEL = {"range_attention_forward": 4, "range_attention_backward": 10}


class Call(NamedTuple):
    """One call of ``glm_jax.ops.attention.tpu``, as its metadata say."""

    backward: bool
    blocks: Blocks
    batch: int
    kv_heads: int
    groups: int
    row: int
    """Queries of a row, T."""
    slots: int
    """Keys of a row, S; of one segment in the backward pass."""


class Trips(NamedTuple):
    """How often each part of the kernel runs in one call."""

    programs: float
    first: float
    """Programs that begin or end what several programs add up."""
    tiles: float
    edges: float
    """Units of keys of which some query of a tile sees only a part."""
    parts: float
    """Parts of tiles that are computed at such units."""
    whole: float
    """Steps over keys that all queries of a tile see."""


def call_of(source: str, attributes: str) -> Call | None:
    """None for any other kernel.

    Args:
      source: the call's ``op_name``.
      attributes: as ``train.planning.hlo`` reads them.
    """
    found = re.search(r"kernel_metadata=\{([^}]*)\}", attributes)
    if not found or not any(name in source for name in FLOPS_PER_CHANNEL):
        return None
    numbers = {name: int(n) for name, n in re.findall(r'"(\w+)":\s*"(\d+)"', found[1])}
    shape = {name: numbers.pop(name) for name in Call._fields[2:] if name in numbers}
    try:
        return Call("range_attention_backward" in source, Blocks(**numbers), **shape)
    except TypeError:  # written by another version
        return None


def causal_flops(source: str, operands: Sequence[str]) -> int | None:
    """Of one call of ``glm_jax.ops.attention.tpu`` when each query sees half of the keys.

    Half is what causal rows see, and what a chunked backward pass sees on average. None for any
    other kernel.

    Args:
      source: the call's ``op_name``.
      operands: printed shapes. The queries are the first array with more than one axis,
        [B, K, H, G * T] or [B, N * H, T]; the keys [B, K, S, H] the first other of four axes that
        holds more than one number for each row.
    """
    names = [name for name in FLOPS_PER_CHANNEL if name in source]
    arrays = [_sizes(shape) for shape in operands]
    queries = next((sizes for sizes in arrays if len(sizes) > 1), None)
    others = [sizes for sizes in arrays if len(sizes) == 4 and sizes != queries and sizes[2] > 1]
    if not names or queries is None or not others:
        return None
    keys = others[0]
    return FLOPS_PER_CHANNEL[names[0]] * math.prod(queries) * keys[2] // 2


def causal_trips(call: Call) -> Trips:
    """The loops of ``tiles.walk``, counted from the tables that the kernel itself would read.

    A backward pass over several segments of keys is counted as the mean of its calls.
    """
    blocks = call.blocks
    key_blocks = -(-max(call.slots, call.row if call.backward else 0) // blocks.keys)
    ahead = 0 if call.backward else (call.slots - call.row) // 2
    ends = np.minimum(ahead + 1 + np.arange(call.row, dtype=np.int32), key_blocks * blocks.keys)
    part = blocks.part or blocks.tile
    table = spans(
        np.zeros((1, call.row), np.int32), ends[None], tile=blocks.tile, unit=blocks.unit, part=part
    )
    units, large = blocks.keys // blocks.unit, blocks.step // blocks.unit
    origins = np.arange(key_blocks)[:, None] * units
    within = [np.clip(np.asarray(x) - origins, 0, units) for x in table]
    first, inner_first, inner_stop, stop, part_first, part_stop = within
    whole = (inner_stop - inner_first) // large
    edges = stop - first - whole * large
    # A part computes its own units but for those that its whole tile computes in large steps.
    own = (part_stop - part_first).reshape(*edges.shape, -1).sum(-1)
    parts = own - whole * large * blocks.parts
    tiles_of_rows = call.groups * blocks.queries // blocks.lanes
    heads = call.batch * call.kv_heads // blocks.heads
    per_row = tiles_of_rows / blocks.tiles * heads
    programs = heads * (call.row // blocks.queries) * key_blocks
    once = heads * key_blocks if call.backward else programs / key_blocks
    made = Trips(
        programs, once, programs * tiles_of_rows,
        edges.sum() * per_row, parts.sum() * per_row, whole.sum() * per_row,
    )  # fmt: skip
    calls = key_blocks if call.backward else 1
    return Trips(*(float(n) / calls for n in made))


def causal_bundles(call: Call, program: Part) -> float | None:
    """Bundles of the compiler's schedule times how often each runs: cycles of one TensorCore in one
    call, were no memory waited for. None where the schedule is not built as ``tiles.walk`` is."""
    around = _around_leaves(program)
    if around is None:
        return None
    leaves, trips = around.loops, causal_trips(call)
    before, steps, after = leaves
    per_edge = (_per_edge(before) + _per_edge(after)) / 2
    per_part = (_per_part(before) + _per_part(after)) / 2
    cycles = per_edge * trips.edges + per_part * trips.parts + steps.own * trips.whole
    inner = sum(leaf.stop - leaf.start for leaf in leaves)
    loops = [part for part in program.walk() if part.kind == "loop" and part not in leaves]
    tiled = call.groups * call.blocks.queries > call.blocks.lanes
    tile = around if tiled else None
    if tile is not None:
        cycles += (tile.stop - tile.start - inner) * trips.tiles
    grid = loops[0] if loops and loops[0] is not tile else program
    guarded = [p for p in grid.guarded if not _inside(p, tile) and not _holds(p, leaves)]
    once = sum(p.stop - p.start for p in guarded)
    straight = grid.stop - grid.start - once
    straight -= (tile.stop - tile.start) if tile is not None else inner
    return cycles + straight * trips.programs + once * trips.first


def _around_leaves(program: Part) -> Part | None:
    """What holds the three loops over keys of a tile: edges, whole steps, edges."""
    for part in program.walk():
        if part.kind != "skip" and len(part.loops) == 3 and not any(x.loops for x in part.loops):
            return part
    return None


def _per_edge(loop: Part) -> int:
    return loop.stop - loop.start - sum(p.stop - p.start for p in loop.guarded)


def _per_part(loop: Part) -> float:
    """Of an edge that is computed in parts, each behind a branch; 0 where it is not."""
    sizes = [p.stop - p.start for p in loop.guarded]
    return sum(sizes) / len(sizes) if sizes else 0.0


def _inside(part: Part, around: Part | None) -> bool:
    return around is not None and around.start <= part.start and part.stop <= around.stop


def _holds(part: Part, leaves: Sequence[Part]) -> bool:
    return any(_inside(leaf, part) or _inside(part, leaf) for leaf in leaves)


def _sizes(shape: str) -> tuple[int, ...]:
    found = re.match(r"[a-z0-9]+\[([\d,]*)\]", shape)
    return tuple(int(n) for n in found[1].split(",") if n) if found else ()
