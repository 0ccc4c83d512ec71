"""Keys and values go round the shards: no device holds more than two shards' at a time.

Ring attention (Liu et al. 2023, arXiv 2310.01889): at step r shard i works on the keys of shard
i - r while they already travel on to shard i + 1. The partial outputs are merged by their
log-sum-exp. Backward the gradients of the keys travel one step behind the keys, each shard adding
its part, and are home after a whole round; only scores are computed again, with the log-sum-exp of
all keys.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.context.local import LocalAttention
from glm_jax.ops.attention.context.order import Order, within
from glm_jax.ops.attention.online import EMPTY, HIDDEN
from glm_jax.ops.attention.prefix import LayerPrefix


class Ring(NamedTuple):
    """What does not change; static."""

    local: LocalAttention
    axis: str
    order: Order

    def among(self, bound: Array, step: Array | int, *, prefix: int, held: int) -> Array:
        """A bound in the row, behind a prefix, as one among the ``held`` keys of a step."""
        shards = jax.lax.axis_size(self.axis)
        shard = jax.lax.rem(jax.lax.axis_index(self.axis) + shards - step, shards)
        return within(bound - prefix, shard, order=self.order, shards=shards, length=held * shards)

    def among_own(self, bound: Array, *, prefix: int, held: int) -> Array:
        """The same for the shard's own keys with the prefix in front of them."""
        return jnp.clip(bound, 0, prefix) + self.among(bound, 0, prefix=prefix, held=held)

    def send(self, x):
        """To the next shard."""
        shards = jax.lax.axis_size(self.axis)
        to = [(i, (i + 1) % shards) for i in range(shards)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, to), x)


def ring_attention(
    local: LocalAttention,
    axis: str,
    order: Order,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    prefix: LayerPrefix,
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """One shard's part, under ``jax.shard_map``: T and S count what it holds, ranges all keys."""
    before = (jnp.broadcast_to(x.astype(k.dtype), (len(k), *x.shape)) for x in (prefix.k, prefix.v))
    return _attend(Ring(local, axis, order), q, k, v, *before, k_start, k_end)


def _rounds(ring: Ring, step, carry):
    """``step(carry, r)`` for the steps between the first and the last, as one loop."""
    shards = jax.lax.axis_size(ring.axis)
    if shards <= 2:
        return carry
    return jax.lax.scan(lambda c, r: (step(c, r), None), carry, jnp.arange(1, shards - 1))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: Ring, q, k, v, before_k, before_v, k_start, k_end):
    return _attend_fwd(ring, q, k, v, before_k, before_v, k_start, k_end)[0]


def _attend_fwd(ring: Ring, q, k, v, before_k, before_v, k_start, k_end):
    sizes = {"prefix": before_k.shape[1], "held": k.shape[1]}

    def add(total, held, r):
        start, end = (ring.among(x, r, **sizes) for x in (k_start, k_end))
        k, v = held
        part = ring.local.forward(q, k, v, start, end)
        return _merge(total, part)

    def step(carry, r):
        total, held = carry
        return add(total, held, r), ring.send(held)

    own = jnp.concatenate([before_k, k], 1), jnp.concatenate([before_v, v], 1)
    held = ring.send((k, v))
    start, end = (ring.among_own(x, **sizes) for x in (k_start, k_end))
    out, lse = ring.local.forward(q, *own, start, end)
    total = out.astype(jnp.float32), lse
    total, held = _rounds(ring, step, (total, held))
    out, lse = add(total, held, jax.lax.axis_size(ring.axis) - 1)
    lse = jnp.where(lse < HIDDEN / 2, EMPTY, lse)
    # Named alike, so that a policy which keeps the output need not go round again.
    out, lse = (checkpoint_name(x, "attention_out") for x in (out.astype(q.dtype), lse))
    return out, (q, k, v, before_k, before_v, k_start, k_end, out, lse)


def _attend_bwd(ring: Ring, saved, d_out):
    q, k, v, before_k, before_v, k_start, k_end, out, lse = saved
    prefix, held_size = before_k.shape[1], k.shape[1]
    sizes = {"prefix": prefix, "held": held_size}

    def add(dq, grads, held, r):
        start, end = (ring.among(x, r, **sizes) for x in (k_start, k_end))
        k, v = held
        part, *mine = ring.local.backward(q, k, v, start, end, out, lse, d_out)
        return dq + part, jax.tree.map(jnp.add, ring.send(grads), tuple(mine))

    def step(carry, r):
        dq, grads, held = carry
        return *add(dq, grads, held, r), ring.send(held)

    own = jnp.concatenate([before_k, k], 1), jnp.concatenate([before_v, v], 1)
    held = ring.send((k, v))
    start, end = (ring.among_own(x, **sizes) for x in (k_start, k_end))
    dq, *grads = ring.local.backward(q, *own, start, end, out, lse, d_out)
    d_before = [x[:, :prefix].astype(k.dtype) for x in grads]
    carry = dq, tuple(x[:, prefix:] for x in grads), held
    dq, grads, held = _rounds(ring, step, carry)
    dq, grads = add(dq, grads, held, jax.lax.axis_size(ring.axis) - 1)
    dk, dv = (x.astype(k.dtype) for x in ring.send(grads))
    return dq.astype(q.dtype), dk, dv, *d_before, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _merge(total, part):
    """Outputs (float32) and log-sum-exps over two sets of keys, as over both."""
    (out, lse), (new_out, new_lse) = total, part
    both = jnp.logaddexp(lse, new_lse)
    old, new = (jnp.exp(x - both)[..., None] for x in (lse, new_lse))
    return out * old + new_out.astype(jnp.float32) * new, both
