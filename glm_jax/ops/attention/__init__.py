"""Attention where every query sees one contiguous run of keys.

``k_start, k_end`` [B, T] (inclusive, exclusive) say which; an empty run gives a zero output. All of
GLM's patterns are of this form: see ``glm_jax.nn.masks``.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention import gpu, tpu
from glm_jax.ops.attention.chunked import chunked_attention
from glm_jax.ops.attention.context import LocalAttention, Order
from glm_jax.ops.attention.in_place import in_place_attention, reads_in_place
from glm_jax.ops.attention.prefix import LayerPrefix
from glm_jax.ops.attention.reference import heads_first_attention, reference_attention
from glm_jax.ops.attention.sharded import sharded_attention
from glm_jax.ops.chip import fast_memory, on_nvidia, on_tpu
from glm_jax.ops.dropout import Dropout, Drops
from glm_jax.sharding import constrain, ways

Form = Literal["reference", "chunked", "tpu", "gpu"]
Implementation = Literal["auto"] | Form

_WHY_NOT = {"tpu": tpu.why_not, "gpu": gpu.why_not}
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
    prefix: LayerPrefix | None = None,
    order: Order = "natural",
) -> Float[Array, "B T N H"]:
    """``softmax(q k / sqrt(H)) v`` over each query's run of keys, softmax in float32.

    Query head n reads kv head ``n // (N // K)``; keys and values are never repeated.

    Args:
      implementation: ``reference`` holds all [T, S] scores; ``chunked`` needs memory linear in T
        and S and skips blocks that no query sees; ``tpu`` and ``gpu`` do the same as kernels;
        ``auto`` is ``tpu`` on TPUs and, but for float32, ``gpu`` on NVIDIA's GPUs where that
        takes the call (see their ``why_not``; decoding on TPUs has ``in_place_attention``), and
        chooses by size elsewhere.
      dropout: rate and key for dropping attention probabilities; every implementation drops the
        same.
      prefix: keys before those of every row; the runs count it.
      order: where the tokens of ``q``, ``k`` and ``v`` lie if their rows are cut over the mesh's
        ``context`` axis; runs count keys in the row's own order in any case.

    Raises:
      ValueError: heads that do not divide, an unknown implementation, ``tpu`` or ``gpu`` for a
        call that the kernels do not take, or rows in zig-zag order that cannot be cut so.
    """
    form, drops = _chosen(q, k, implementation), None
    if dropout is not None:
        words = constrain(dropout.words(q), "batch", "length", "heads")
        drops = Drops(dropout.rate, words)
    kernel = form in _WHY_NOT
    if kernel or ways("length") > 1:
        local = LocalAttention(form, fast_memory() if kernel else 0, drops.rate if drops else 0.0)
        return sharded_attention(
            local, q, k, v, k_start, k_end,
            prefix=prefix, order=order, words=drops.words if drops else None,
        )  # fmt: skip
    if prefix is not None:
        k, v = prefix.before(k, v)
    attend = reference_attention if form == "reference" else chunked_attention
    return attend(q, k, v, k_start, k_end, drops=drops)


def cached_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    *,
    implementation: Implementation = "auto",
) -> Float[Array, "B T N H"]:
    """``attention`` over keys and values that have their heads first, as a cache holds them."""
    turned = k.swapaxes(1, 2), v.swapaxes(1, 2)
    form = _chosen(q, turned[0], implementation)
    if implementation == "auto" and form == "gpu" and _small(q, turned[0]):
        form = "reference"  # The kernels want the cache turned, which copies it.
    if form == "reference" and ways("length") == 1:
        return heads_first_attention(q, k, v, k_start, k_end)
    return attention(q, *turned, k_start, k_end, implementation=form)


def _chosen(q, k, implementation: Implementation) -> Form:
    """What ``auto`` stands for; raises ValueError for what cannot be."""
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads do not divide among {k.shape[2]} kv heads")
    if implementation == "auto":
        # A GPU's kernels compute float32 without its matrix units; XLA rounds it to TF32.
        on_gpu = on_nvidia() and q.dtype != jnp.float32
        kernel = "tpu" if on_tpu() else "gpu" if on_gpu else None
        if kernel and not _WHY_NOT[kernel](q, k):
            return kernel
        return "reference" if _small(q, k) else "chunked"
    if implementation not in (known := get_args(Form)):
        raise ValueError(f"attention is {implementation!r}; choose auto, {', '.join(known)}")
    if implementation in _WHY_NOT and (refused := _WHY_NOT[implementation](q, k)):
        kernel = implementation.upper()
        raise ValueError(f"the {kernel} kernel does not take this call: {refused}; choose auto")
    return implementation


def _small(q: Float[Array, "B T N H"], k: Float[Array, "B S K H"]) -> bool:
    return q.shape[1] * k.shape[1] <= _REFERENCE_MAX_SCORES


__all__ = [
    "Dropout",
    "Implementation",
    "LayerPrefix",
    "Order",
    "attention",
    "cached_attention",
    "chunked_attention",
    "in_place_attention",
    "reads_in_place",
    "reference_attention",
]
