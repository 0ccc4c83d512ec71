"""Attention where every query sees one contiguous run of keys.

``k_start, k_end`` [B, T] (inclusive, exclusive) say which; an empty run gives a zero output. All of
GLM's patterns are of this form: see ``glm_jax.nn.masks``.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.chunked import chunked_attention
from glm_jax.ops.attention.reference import Dropout, reference_attention

Implementation = Literal["auto", "reference", "chunked"]

# Above this many scores per head the [T, S] matrix costs more memory than it saves time.
_REFERENCE_MAX_SCORES = 1024 * 1024


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    *,
    implementation: Implementation = "auto",
    dropout: Dropout | None = None,
) -> Float[Array, "B T N H"]:
    """``softmax(q k / sqrt(H)) v`` over each query's run of keys, softmax in float32.

    Query head n reads kv head ``n // (N // K)``; keys and values are never repeated.

    Args:
      implementation: ``reference`` holds all [T, S] scores; ``chunked`` needs memory linear in T
        and S and skips blocks that no query sees; ``auto`` chooses by size.
      dropout: rate and key for dropping attention probabilities.

    Raises:
      ValueError: heads that do not divide, or an unknown implementation.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads do not divide among {k.shape[2]} kv heads")
    if implementation == "auto":
        small = q.shape[1] * k.shape[1] <= _REFERENCE_MAX_SCORES
        implementation = "reference" if small else "chunked"
    if implementation == "reference":
        return reference_attention(q, k, v, k_start, k_end, dropout=dropout)
    if implementation == "chunked":
        return chunked_attention(q, k, v, k_start, k_end, dropout=dropout)
    raise ValueError(f"attention is {implementation!r}; choose auto, reference or chunked")


__all__ = ["Dropout", "Implementation", "attention", "chunked_attention", "reference_attention"]
