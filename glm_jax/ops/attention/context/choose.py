"""Which way queries and keys come together, by what it moves, holds and waits for."""

from __future__ import annotations

from typing import Literal

Way = Literal["gather", "ring", "spread"]


def choose_way(
    *, queries: int, keys: int, heads: int, kv_heads: int, shards: int, own_keys: bool
) -> Way:
    """One of the three ways, for one device's heads and rows of ``queries`` and ``keys`` in all.

    What each costs per layer and channel of a head, T queries, S keys, c shards:

    ======  ===================  ===============================  ===================
    way     sent forward         held                             sent in the open
    ======  ===================  ===============================  ===================
    gather  2 S K (c - 1) / c    2 S K                            all of it
    ring    2 S K (c - 1) / c    4 S K / c, outputs in float32    none, where a step's
                                                                  sums take longer
    spread  3 T N (c - 1) / c    T N in float32                   all of it
    ======  ===================  ===============================  ===================

    - ``spread`` moves the queries (and their outputs in float32), so it is for few of them over
      many keys: reading a prompt piece by piece, and decoding. It has no gradient.
    - ``gather`` and ``ring`` send the same bytes, and so do their backward passes. The ring hides
      the sending, but merges N heads' outputs c times and starts c kernels. Gathering waits
      ``2 c K / N x peak / bandwidth / S`` of the causal attention's own time and holds ``c K / N``
      of what a device's own queries and outputs hold. It is taken where ``c K <= N``: then the
      wait is at most 2 peak / bandwidth in S (v5p, 459 TFLOP/s and 200 GB/s along one axis of the
      slice: 4 % at S = 131,072), and no device holds more for the keys than for its queries.

    Args:
      heads: query heads of one device; ``kv_heads`` likewise.
      own_keys: the keys are those of the queries' own tokens, not a cache.
    """
    if not own_keys and 3 * queries * heads < 2 * keys * kv_heads:
        return "spread"
    return "gather" if shards * kv_heads <= heads else "ring"
