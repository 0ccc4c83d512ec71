"""How the work is cut, per chip and shape.

A program of the kernel holds ``queries`` queries with all query heads of one key head, and
``keys`` keys, in fast memory. Inside, it computes ``lanes`` rows (a row is a query of one head) by
``step`` keys at a time where every row sees every key, and by ``unit`` keys where a mask is needed;
only whole units that nobody sees are left out, so small units and few queries per tile waste
little and large ones keep the matrix unit busy.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of one kernel (forward or backward)."""

    queries: int
    """Queries of one program; each comes with the G heads that share a key head."""
    lanes: int
    """Rows computed together."""
    keys: int
    """Keys in fast memory."""
    step: int
    """Keys computed together where all are seen."""
    unit: int = 128
    """The same where some are hidden."""
    heads: int = 1
    """Key heads of one program: all see the same keys, and one computes while another waits."""
    vmem: int | None = None
    """Bytes of fast memory to ask for; None: what the compiler gives."""
    part: int = 0
    """Queries of a tile that are left out together where they see none of the keys; 0: only a tile
    as a whole is. Parts want tiles of one head."""
    in_place: bool = False
    """Queries and outputs are [B, N * H, T], and the program puts its rows together itself."""

    @property
    def tile(self) -> int:
        """Queries computed together."""
        return min(self.lanes, self.queries)

    @property
    def parts(self) -> int:
        """Parts of one tile."""
        return self.tile // self.part if self.part else 1

    @property
    def tiles(self) -> int:
        """Tiles of one program."""
        return self.queries // self.tile

    def metadata(self, **shape: int) -> dict[str, str]:
        """For the compiled program, so that who reads it knows what was cut how."""
        sizes = ("queries", "lanes", "keys", "step", "unit", "heads", "part")
        return {name: str(n) for name, n in shape.items()} | {
            name: str(getattr(self, name)) for name in sizes
        }


class Problem(NamedTuple):
    """One shard's attention, and the fast memory of the chip it runs on."""

    batch: int
    queries: int
    keys: int
    kv_heads: int
    groups: int
    head_dim: int
    itemsize: int
    vmem: int


# (query heads per key head at least, queries at most) -> queries of a program, queries of a tile,
# rows of a tile at most. Chosen by the compiler's schedules (benchmarks.attention): 1024 rows at a
# time, of one head or of several, hide the latency of the products; a tile of at most 256 queries
# keeps rows of packed documents near what is visible, which rows beyond 8k do not need.
_TABLE = {
    (8, None): (128, 128, 1024),
    (2, 8192): (256, 256, 1024),
    (2, None): (512, 512, 1024),
    (1, 8192): (512, 256, 256),
    (1, None): (1024, 512, 512),
}
# Many rows and their gradients leave a small memory no room for keys.
_TABLE_IN_SMALL = _TABLE | {(8, None): (64, 64, 1024)}

# Shares of fast memory for keys, values and (backward) their gradients; the rest holds queries,
# scores and what the compiler adds.
_FORWARD_SHARE, _BACKWARD_SHARE = 0.53, 0.5
_LANES = 128
# Below it the fast memory is that of v4: an eighth of v5e's and v6e's, a quarter of v5p's.
_SMALL = 2**25


def choose(problem: Problem) -> tuple[Blocks, Blocks]:
    """How to cut the forward and the backward pass."""
    queries, lanes = _rows(problem)
    width = -(-problem.head_dim // _LANES) * _LANES
    # Both copies of keys and values; backward also the keys turned, and two float32 gradients.
    forward_bytes = 4 * width * problem.itemsize
    backward_bytes = 6 * width * problem.itemsize + 16 * width
    # Queries lie along the lanes there, so only whole vectors of them can be taken out.
    in_place = problem.groups > 1 and problem.head_dim % 16 == 0 and queries % _LANES == 0
    row_bytes = problem.groups * queries * width * problem.itemsize if in_place else 0
    small = problem.vmem < _SMALL
    forward_heads = _heads(problem.kv_heads, (512 if small else 1024) // lanes)
    backward_heads = _heads(problem.kv_heads, 1 if small else min(2, 1024 // lanes))

    def blocks(heads: int, per_key: int, share: float, rows: int) -> Blocks:
        most = (int(share * problem.vmem) - rows * heads * row_bytes) // (heads * per_key)
        keys = _even(problem.keys, max(_LANES, most // _LANES * _LANES))
        return Blocks(
            queries=queries,
            lanes=lanes,
            keys=keys,
            step=min(512, keys),
            heads=heads,
            vmem=int(0.9 * problem.vmem),
            part=_LANES if problem.groups == 1 else 0,
            in_place=in_place,
        )

    return (
        blocks(forward_heads, forward_bytes, _FORWARD_SHARE, 1),
        blocks(backward_heads, backward_bytes, _BACKWARD_SHARE, 2),
    )


def _rows(problem: Problem) -> tuple[int, int]:
    """Queries of a program and rows of a tile."""
    small = problem.vmem < _SMALL
    longest = min(problem.queries, 8192) if small else problem.queries
    queries, tile, most = next(
        sizes
        for (groups, length), sizes in (_TABLE_IN_SMALL if small else _TABLE).items()
        if problem.groups >= groups and (length is None or longest <= length)
    )
    if problem.groups * queries % _LANES:
        queries = tile = _LANES
    # A short call gets no more rows than it can use.
    while queries // 2 >= problem.queries and problem.groups * queries // 2 % _LANES == 0:
        queries //= 2
    tile = min(tile, queries)
    ways = [d for d in range(1, problem.groups + 1) if problem.groups % d == 0]
    fitting = [d * tile for d in ways if d * tile <= max(most, tile) and d * tile % _LANES == 0]
    # Where nothing small is whole lanes, all rows of the program are.
    return queries, max(fitting, default=problem.groups * queries)


def _heads(kv_heads: int, most: int) -> int:
    return max(n for n in (1, 2, 4) if n <= max(1, most) and kv_heads % n == 0)


def _even(keys: int, most: int) -> int:
    """The size of the fewest equal blocks of at most ``most`` keys: whole units, little padding."""
    parts = -(-keys // most)
    return -(-keys // (parts * _LANES)) * _LANES
