"""Attention where every query sees one contiguous run of keys.

``k_start, k_end`` [B, T] (inclusive, exclusive) say which; an empty run gives a zero output. All of
GLM's patterns are of this form: see ``glm_jax.nn.masks``.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.chunked import chunked_attention
from glm_jax.ops.attention.reference import Dropout, reference_attention
from glm_jax.ops.attention.tpu import on_tpu, tpu_attention, vmem, why_not

Implementation = Literal["auto", "reference", "chunked", "tpu"]

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
        and S and skips blocks that no query sees; ``tpu`` does the same as one kernel; ``auto``
        is ``tpu`` on TPUs where that takes the call (see ``tpu.why_not``; decoding and dropout it
        leaves), and chooses by size elsewhere, on GPUs as well: XLA's own fusions, unmeasured.
      dropout: rate and key for dropping attention probabilities.

    Raises:
      ValueError: heads that do not divide, an unknown implementation, or ``tpu`` for a call that
        the kernel does not take.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads do not divide among {k.shape[2]} kv heads")
    refused = why_not(q, k, dropout=dropout is not None)
    if implementation == "auto" and on_tpu() and not refused:
        implementation = "tpu"
    if implementation == "auto":
        small = q.shape[1] * k.shape[1] <= _REFERENCE_MAX_SCORES
        implementation = "reference" if small else "chunked"
    if implementation == "reference":
        return reference_attention(q, k, v, k_start, k_end, dropout=dropout)
    if implementation == "chunked":
        return chunked_attention(q, k, v, k_start, k_end, dropout=dropout)
    if implementation == "tpu":
        if refused:
            raise ValueError(f"the TPU kernel does not take this call: {refused}; choose auto")
        return tpu_attention(q, k, v, k_start, k_end, vmem=vmem())
    raise ValueError(f"attention is {implementation!r}; choose auto, reference, chunked or tpu")


__all__ = ["Dropout", "Implementation", "attention", "chunked_attention", "reference_attention"]
