"""Attention over key ranges as a function of ordinary arrays, with its gradient."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int, Shaped

from glm_jax.ops.attention.gpu.backward import Saved, keys_gradient, queries_gradient
from glm_jax.ops.attention.gpu.blocks import LEAST, Cut
from glm_jax.ops.attention.gpu.forward import forward
from glm_jax.ops.attention.gpu.tiles import Statics
from glm_jax.ops.attention.padding import pad


class Plan(NamedTuple):
    """How the kernels are cut."""

    cut: Cut
    dropout: float = 0.0
    """Rate, where there are words."""
    interpret: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def range_attention(
    plan: Plan,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    words: Int[Array, "B T N"] | None = None,
) -> Float[Array, "B T N H"]:
    """See ``glm_jax.ops.attention.attention``; any T, S and H, padded inside to whole blocks."""
    return range_forward(plan, q, k, v, k_start, k_end, words)[0]


def range_forward(plan: Plan, q, k, v, k_start, k_end, words):
    """The output, and what ``range_backward`` wants: at last the log-sum-exp [B, T, N], base 2."""
    padded = functools.partial(_padded, plan.cut)
    k_start, k_end = (jnp.clip(x, 0, k.shape[1]) for x in (k_start, k_end))
    out, lse = forward(
        padded(q), padded(k, keys=True), padded(v, keys=True), padded(k_start), padded(k_end),
        None if words is None else _by_head(plan.cut, words),
        blocks=plan.cut.forward, statics=_statics(plan, q),
    )  # fmt: skip
    t, h = q.shape[1], q.shape[3]
    # Named alike, so that a policy which keeps the output need not run the kernel again.
    out, lse = (
        checkpoint_name(x, "attention_out") for x in (out[:, :t, :, :h], lse.swapaxes(1, 2)[:, :t])
    )
    return out, (q, k, v, k_start, k_end, words, out, lse)


def range_backward(plan: Plan, saved, d_out):
    """The gradients of ``range_attention``'s arguments; the output and the log-sum-exp may be over
    more keys than these, and dq is then what these add to it."""
    q, k, v, k_start, k_end, words, out, lse = saved
    delta = jnp.einsum("BTNH,BTNH->BTN", out, d_out, preferred_element_type=jnp.float32)
    padded = functools.partial(_padded, plan.cut)
    by_head = functools.partial(_by_head, plan.cut)
    given = Saved(
        padded(q), padded(d_out.astype(q.dtype)), by_head(lse), by_head(delta),
        padded(k, keys=True), padded(v, keys=True), padded(k_start), padded(k_end),
        None if words is None else by_head(words),
    )  # fmt: skip
    statics = _statics(plan, q)
    dq = queries_gradient(given, blocks=plan.cut.queries, statics=statics, dtype=q.dtype)
    grads = keys_gradient(given, blocks=plan.cut.keys, statics=statics, dtype=k.dtype)
    (t, h), s = (q.shape[1], q.shape[3]), k.shape[1]
    dk, dv = (x[:, :s, :, :h] for x in grads)
    return dq[:, :t, :, :h], dk, dv, None, None, None


def _statics(plan: Plan, q: Array) -> Statics:
    return Statics(q.shape[3], plan.dropout, plan.interpret)


def _by_head(cut: Cut, x: Shaped[Array, "B T N"]) -> Shaped[Array, "B N T"]:
    return _padded(cut, x).swapaxes(1, 2)


def _padded(cut: Cut, x: Array, *, keys: bool = False) -> Array:
    """Zeros after the rows, up to whole blocks of every kernel, and after the channels; ranges of
    rows that are not there are empty."""
    x = pad(x, max(blocks.keys if keys else blocks.queries for blocks in cut))
    if x.ndim < 4:
        return x
    return pad(x, max(LEAST, pl.next_power_of_2(x.shape[3])), axis=3)


range_attention.defvjp(range_forward, range_backward)
