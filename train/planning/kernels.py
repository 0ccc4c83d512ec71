"""FLOPs of the project's own Pallas kernels, from the shapes that they are called with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

# Two products of a query and a key, and five when they are differentiated in one pass (scores and
# d_probs again, then d_v, d_q, d_k); two FLOPs a channel each (arXiv 2205.14135, algorithms 1, 4).
FLOPS_PER_CHANNEL = {"range_attention_forward": 4, "range_attention_backward": 10}


def causal_flops(source: str, operands: Sequence[str]) -> int | None:
    """Of one call of ``glm_jax.ops.attention.tpu`` when each query sees half of the keys.

    Which keys a query sees is data; half is what causal rows see, and what a chunked backward pass
    sees on average. None for any other kernel.

    Args:
      source: the call's ``op_name``.
      operands: printed shapes. The queries are the first array with more than one axis,
        [B, K, H, G * T] or [B, T, N * H]; the keys [B, K, S, H] the first other of four axes that
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


def _sizes(shape: str) -> tuple[int, ...]:
    found = re.match(r"[a-z0-9]+\[([\d,]*)\]", shape)
    return tuple(int(n) for n in found[1].split(",") if n) if found else ()
