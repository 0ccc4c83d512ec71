"""How the work is cut: what one program holds in registers and shared memory.

Chosen by what Triton and ptxas make of it for an H100, an A100 and an A6000 (``python -m
benchmarks.attention.gpu``): of the sizes that fit and spill few or no registers to memory, those
with the fewest instructions to a pair of query and key. float32 is computed without the matrix
units; its sizes are the largest that spill next to nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jax.experimental import pallas as pl

# What tensor cores of Triton's products want.
LEAST = 16


class Blocks(NamedTuple):
    """Sizes of one kernel, powers of two."""

    queries: int
    keys: int
    warps: int
    stages: int = 2
    """Copies of what the loop reads: it loads one while it computes with another."""

    @property
    def params(self) -> Any:
        from jax.experimental.pallas import triton  # JAX for Windows has none.

        return triton.CompilerParams(num_warps=self.warps, num_stages=self.stages)

    def within(self, queries: int, keys: int) -> Blocks:
        """No block is longer than what it is to hold."""
        least = lambda block, n: min(block, max(LEAST, pl.next_power_of_2(n)))
        sizes = least(self.queries, queries), least(self.keys, keys)
        warps = min(self.warps, sizes[0] * sizes[1] // 128)
        return self._replace(queries=sizes[0], keys=sizes[1], warps=warps)


class Cut(NamedTuple):
    """Of the three kernels."""

    forward: Blocks
    queries: Blocks
    """The gradient of the queries."""
    keys: Blocks
    """The gradients of keys and values."""


# Bytes of shared memory that a program may have at least -> (bytes of a number, channels at most)
# -> sizes. Hopper's matrix units take their operands from there, which leaves registers for larger
# blocks; all others since Ampere have at least 99 KiB.
_TABLES = {
    200 * 2**10: {
        (2, 64): Cut(Blocks(64, 128, 4), Blocks(64, 128, 4), Blocks(64, 64, 4)),
        (2, 128): Cut(Blocks(128, 128, 8), Blocks(128, 128, 8), Blocks(64, 128, 8)),
        (2, 256): Cut(Blocks(64, 64, 4), Blocks(64, 32, 4), Blocks(64, 32, 4)),
        (4, 64): Cut(*[Blocks(32, 32, 4)] * 3),
        (4, 128): Cut(*[Blocks(32, 16, 4)] * 3),
    },
    0: {
        (2, 64): Cut(Blocks(64, 128, 4), Blocks(64, 64, 4), Blocks(64, 64, 4)),
        (2, 128): Cut(Blocks(128, 64, 8), Blocks(64, 64, 4), Blocks(64, 64, 4)),
        (2, 256): Cut(*[Blocks(32, 32, 4)] * 3),
        (4, 64): Cut(*[Blocks(32, 32, 4)] * 3),
        (4, 128): Cut(*[Blocks(32, 16, 4)] * 3),
    },
}
MOST_CHANNELS = {2: 256, 4: 128}
"""By bytes of a number."""


def choose(queries: int, keys: int, head_dim: int, itemsize: int, shared: int) -> Cut:
    """For rows of this many queries and keys, and ``shared`` bytes of shared memory."""
    table = next(table for least, table in _TABLES.items() if shared >= least)
    cut = next(cut for (size, most), cut in table.items() if size == itemsize and head_dim <= most)
    return Cut(*(blocks.within(queries, keys) for blocks in cut))
