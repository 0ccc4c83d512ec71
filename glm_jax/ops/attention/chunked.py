"""Attention over key ranges in memory linear in T and S: blocks, online softmax, own backward pass.

The blockwise softmax is that of FlashAttention (Dao et al. 2022, algorithms 1 and 2). Query blocks
run over just the key blocks that some query of theirs sees, so causal and packed rows skip what
they hide; the loop bounds are data, hence the hand-written gradient.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from glm_jax.ops.attention.online import EMPTY, HIDDEN
from glm_jax.ops.attention.padding import pad
from glm_jax.ops.attention.reference import visible
from glm_jax.ops.dropout import Drops, drop, keeps


class _Statics(NamedTuple):
    q_block: int
    k_block: int
    dropout_rate: float

    def within(self, q: Array, k: Array) -> _Statics:
        """No block is longer than what it is to hold."""
        blocks = min(self.q_block, q.shape[1]), min(self.k_block, k.shape[1])
        return _Statics(*blocks, self.dropout_rate)


def chunked_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    *,
    q_block: int = 256,
    k_block: int = 512,
    drops: Drops | None = None,
) -> Float[Array, "B T N H"]:
    """See ``glm_jax.ops.attention.attention``; rows are padded to whole blocks inside."""
    statics = _Statics(q_block, k_block, drops.rate if drops else 0.0).within(q, k)
    blocks = _blocks(statics, q, k, v, k_start, k_end)
    words = pad(drops.words, statics.q_block).reshape(blocks[0].shape[:4]) if drops else None
    return _rows(_attend(statics, *blocks, words), q)


def chunked_forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    *,
    q_block: int = 256,
    k_block: int = 512,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """The output and the log-sum-exp of each query's scores, ``EMPTY`` where it sees nothing."""
    statics = _Statics(q_block, k_block, 0.0).within(q, k)
    blocks = _blocks(statics, q, k, v, k_start, k_end)
    out, saved = _attend_fwd(statics, *blocks, None)
    lse: Float[Array, "blocks B K G t"] = saved[-1]
    return _rows(out, q), _rows(_join(lse.transpose(0, 1, 4, 2, 3)), q[..., 0])


def chunked_backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    out: Float[Array, "B T N H"],
    lse: Float[Array, "B T N"],
    d_out: Float[Array, "B T N H"],
    *,
    q_block: int = 256,
    k_block: int = 512,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Gradients of q, k and v in float32.

    ``out`` and ``lse`` may be over more keys than these: dq is then what these add to it.
    """
    statics = _Statics(q_block, k_block, 0.0).within(q, k)
    blocks = _blocks(statics, q, k, v, k_start, k_end)
    turn = lambda x: pad(x, statics.q_block).reshape(*blocks[0].shape[:4], *x.shape[3:])
    lse = _split(turn(lse), statics.q_block).transpose(0, 1, 3, 4, 2)
    saved = (*blocks, None, turn(out), lse)
    dq, dk, dv = _gradients(statics, saved, turn(d_out), jnp.float32)
    return _rows(dq, q) * q.shape[3] ** -0.5, dk[:, : k.shape[1]], dv[:, : k.shape[1]]


def _blocks(statics, q, k, v, k_start, k_end):
    """Queries scaled and grouped by key head, everything padded to whole blocks."""
    (b, _, n, h), groups = q.shape, k.shape[2]
    q_block, k_block, _ = statics
    grouped = pad(q * h**-0.5, q_block).reshape(b, -1, groups, n // groups, h)
    # A padded query has an empty run; padded keys lie beyond every run.
    starts, ends = pad(k_start, q_block), pad(jnp.minimum(k_end, k.shape[1]), q_block)
    return grouped, pad(k, k_block), pad(v, k_block), starts, ends


def _rows(x: Array, like: Array) -> Array:
    """[B, padded T, K, G, ...] to the shape of ``like``."""
    return x.reshape(len(x), -1, *like.shape[2:])[:, : like.shape[1]]


def _block(x: Array, index: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=1)


def _key_blocks(starts: Int[Array, "B T"], ends: Int[Array, "B T"], size: int):
    """The first key block that any of these queries sees, and one past the last."""
    seen = starts < ends
    low = jnp.where(seen, starts, jnp.iinfo(jnp.int32).max).min()
    high = jnp.where(seen, ends, 0).max()
    return jnp.minimum(low, high) // size, (high + size - 1) // size


def _kept(statics: _Statics, words, first_key: Array) -> Bool[Array, "B K G T S"] | None:
    """Which keys of a block dropout keeps; ``words`` [B, T, K, G], or None for no dropout."""
    if words is None:
        return None
    keys = first_key + jnp.arange(statics.k_block, dtype=jnp.int32)
    return keeps(statics.dropout_rate, words.transpose(0, 2, 3, 1)[..., None], keys)


def _dropped(statics: _Statics, x: Float[Array, "B K G T S"], kept: Array | None) -> Array:
    return x if kept is None else drop(statics.dropout_rate, x, kept)


def _scores(q, k_block, starts, ends, first_key):
    """Masked float32 scores [B, K, G, T, S] of one pair of blocks, and which of them are seen."""
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k_block, preferred_element_type=jnp.float32)
    seen = visible(starts, ends, first_key + jnp.arange(k_block.shape[1]))
    return jnp.where(seen, scores, HIDDEN), seen


def _forward_block(statics, q, k, v, starts, ends, words):
    """Output [B, T, K, G, H] and log-sum-exp [B, K, G, T] of one block of queries."""
    size = statics.k_block
    b, t, groups, per_group, h = q.shape

    def body(j, carry):
        top, total, out = carry
        scores, seen = _scores(q, _block(k, j, size), starts, ends, j * size)
        new_top = jnp.maximum(top, scores.max(axis=-1))
        shrink = jnp.exp(top - new_top)
        weights = jnp.where(seen, jnp.exp(scores - new_top[..., None]), 0.0)
        kept = _dropped(statics, weights, _kept(statics, words, j * size)).astype(v.dtype)
        part = jnp.einsum(
            "BKGTS,BSKH->BKGTH", kept, _block(v, j, size), preferred_element_type=jnp.float32
        )
        return new_top, total * shrink + weights.sum(-1), out * shrink[..., None] + part

    zeros = jnp.zeros((b, groups, per_group, t), jnp.float32)
    start = (zeros + HIDDEN, zeros, jnp.zeros((*zeros.shape, h), jnp.float32))
    first, last = _key_blocks(starts, ends, size)
    top, total, out = jax.lax.fori_loop(first, last, body, start)
    empty = total == 0.0
    out = out / jnp.where(empty, 1.0, total)[..., None]
    lse = jnp.where(empty, EMPTY, top + jnp.log(jnp.where(empty, 1.0, total)))
    return jnp.einsum("BKGTH->BTKGH", out).astype(q.dtype), lse


def _split(x: Array, size: int) -> Array:
    """[B, T, ...] to [T / size, B, size, ...]."""
    blocks = x.reshape(x.shape[0], -1, size, *x.shape[2:])
    return jnp.moveaxis(blocks, 1, 0)


def _join(x: Array) -> Array:
    """Inverse of ``_split``."""
    moved = jnp.moveaxis(x, 0, 1)
    return moved.reshape(moved.shape[0], -1, *moved.shape[3:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(statics, q, k, v, starts, ends, words):
    return _attend_fwd(statics, q, k, v, starts, ends, words)[0]


def _attend_fwd(statics, q, k, v, starts, ends, words):
    blocks = jax.tree.map(lambda x: _split(x, statics.q_block), (q, starts, ends, words))

    def one(xs):
        qb, sb, eb, wb = xs
        return _forward_block(statics, qb, k, v, sb, eb, wb)

    out, lse = jax.lax.map(one, blocks)
    out = _join(out)
    return out, (q, k, v, starts, ends, words, out, lse)


def _attend_bwd(statics, saved, d_out):
    q, k, v = saved[:3]
    dq, dk, dv = _gradients(statics, saved, d_out, q.dtype)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None, None


def _gradients(statics, saved, d_out, dq_dtype):
    """dq, and in float32 dk and dv."""
    q, k, v, *others, lse = saved
    size = statics.k_block
    split = jax.tree.map(lambda x: _split(x, statics.q_block), (q, *others, d_out))

    def one(totals, xs):
        qb, sb, eb, wb, ob, gb, lse_b = xs
        delta = jnp.einsum("BTKGH,BTKGH->BKGT", ob, gb, preferred_element_type=jnp.float32)

        def body(j, carry):
            dq, dk, dv = carry
            kb, vb = _block(k, j, size), _block(v, j, size)
            scores, seen = _scores(qb, kb, sb, eb, j * size)
            probs = jnp.where(seen, jnp.exp(scores - lse_b[..., None]), 0.0)
            dropped = functools.partial(_dropped, statics, kept=_kept(statics, wb, j * size))
            d_v = jnp.einsum("BKGTS,BTKGH->BSKH", dropped(probs).astype(gb.dtype), gb)
            d_kept = jnp.einsum("BTKGH,BSKH->BKGTS", gb, vb, preferred_element_type=jnp.float32)
            d_scores = (probs * (dropped(d_kept) - delta[..., None])).astype(qb.dtype)
            d_k = jnp.einsum("BKGTS,BTKGH->BSKH", d_scores, qb)
            dq = dq + jnp.einsum("BKGTS,BSKH->BTKGH", d_scores, kb)
            return dq, _accumulate(dk, d_k, j, size), _accumulate(dv, d_v, j, size)

        first, last = _key_blocks(sb, eb, size)
        zero = jnp.zeros(qb.shape, jnp.float32)
        dq, *totals = jax.lax.fori_loop(first, last, body, (zero, *totals))
        return tuple(totals), dq.astype(dq_dtype)

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
    (dk, dv), dq = jax.lax.scan(one, zeros, (*split, lse))
    return _join(dq), dk, dv


def _accumulate(total: Array, part: Array, index: Array, size: int) -> Array:
    updated = _block(total, index, size) + part.astype(total.dtype)
    return jax.lax.dynamic_update_slice_in_dim(total, updated, index * size, axis=1)


_attend.defvjp(_attend_fwd, _attend_bwd)
