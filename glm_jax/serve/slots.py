"""The two compiled programs behind the server: read part of one prompt, write to all rows.

The cache has a fixed number of rows (slots), each for one request. Shapes never depend on who is
being served, so nothing is compiled anew, and a row's numbers are the same bit for bit whatever
stands in the other rows.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from glm_jax.nn import GLM, Compute, KVCache
from glm_jax.text.decoding_loop import Next
from glm_jax.text.sampling import RowSampling, sample

MOST_STEPS = 16
"""Tokens per row that one call can write."""
MOST_STOPS = 16
"""Ids that can end one row."""
MOST_LIKELY = 20
"""Alternatives that a row can report for every token, OpenAI's limit."""
NO_TOKEN = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowRules:
    """How each row's tokens are chosen and when it ends."""

    sampling: RowSampling
    stops: Int[Array, "B E"]
    """Ids that end the row, padded with -1; one that is written counts as a token."""
    limit: Int[Array, " B"]
    """Tokens that the row may have in all."""
    likely: Bool[Array, " B"]
    """Whether the most likely tokens are wanted beside the chosen one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """All that lives on the device between calls."""

    cache: KVCache
    seen: Bool[Array, "B V"]
    """Which tokens a row holds, for the repetition penalty."""
    token: Int[Array, " B"]
    """The last token of each row: chosen, not yet read."""
    next: Next
    """Where that token goes."""
    made: Int[Array, " B"]
    active: Bool[Array, " B"]
    rules: RowRules


class Written(NamedTuple):
    """What a call chose: W tokens per row, -1 where a row had none."""

    tokens: Int[Array, "B W"]
    logprobs: Float[Array, "B W"]
    """Log probability by the model itself, before temperature and penalties."""
    likely: Int[Array, "B W 20"]
    likely_logprobs: Float[Array, "B W 20"]


class Piece(NamedTuple):
    """Part of one prompt, padded on the right to T tokens."""

    tokens: Int[Array, "1 T"]
    positions: Int[Array, "1 2 T"]
    k_end: Int[Array, "1 T"]
    start: Int[Array, ""]
    """Tokens of the prompt before it."""
    length: Int[Array, ""]
    """Its tokens without padding."""
    is_last: Bool[Array, ""]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def empty_slots(model: GLM, rows: int, length: int, compute: Compute) -> Slots:
    """``rows`` free slots for ``length`` tokens each."""
    zeros = jnp.zeros(rows, jnp.int32)
    sampling = jax.tree.map(jnp.asarray, RowSampling.make(rows))
    stops = jnp.full((rows, MOST_STOPS), NO_TOKEN, jnp.int32)
    return Slots(
        model.new_cache(rows, length, jnp.dtype(compute.dtype)),
        jnp.zeros((rows, model.config.vocab_size), bool),
        zeros,
        Next(zeros, zeros, zeros, zeros, zeros),
        zeros,
        zeros.astype(bool),
        RowRules(sampling, stops, zeros, zeros.astype(bool)),
    )


@functools.partial(jax.jit, static_argnames="compute", donate_argnames="slots")
def read(
    model: GLM,
    slots: Slots,
    row: Int[Array, ""],
    piece: Piece,
    following: Next,
    rules: RowRules,
    *,
    compute: Compute,
) -> tuple[Slots, Written]:
    """Reads a piece of a prompt into one row; the last piece chooses the row's first token.

    The other rows' caches are not touched, so a prompt can be read in turns with ``write``.

    Args:
      following: where the first token goes, and ``rules`` the row's, as arrays of one row.

    Returns:
      The slots, and the first token [1, 1], which means something for the last piece only.
    """
    hidden, cache = model.decode(
        piece.tokens, piece.positions, jnp.zeros_like(piece.k_end), piece.k_end,
        slots.cache.row(row), piece.start[None], compute=compute,
    )  # fmt: skip
    cache = slots.cache.with_row(row, cache)

    vocab = slots.seen.shape[1]
    real = jnp.arange(piece.tokens.shape[1]) < piece.length
    seen = jnp.where(piece.start == 0, False, jnp.take(slots.seen, row, axis=0))
    seen = seen.at[jnp.where(real, piece.tokens[0], vocab)].set(True, mode="drop")
    last = jax.lax.dynamic_slice_in_dim(hidden, piece.length - 1, 1, axis=1)
    logits = model.logits(last)[:, 0]
    token = _choose(logits, rules.sampling, seen[None], jnp.zeros(1, jnp.int32))
    written = _report(logits, token, rules.likely, rules.sampling)
    seen = seen.at[token[0]].max(piece.is_last)

    put = lambda whole, one: whole.at[row].set(jnp.where(piece.is_last, one[0], whole[row]))
    ended = _ends(token, rules.stops) | (rules.limit <= 1)
    return Slots(
        cache,
        slots.seen.at[row].set(seen),
        put(slots.token, token),
        jax.tree.map(put, slots.next, following),
        put(slots.made, jnp.ones(1, jnp.int32)),
        slots.active.at[row].set(piece.is_last & ~ended[0]),
        jax.tree.map(put, slots.rules, rules),
    ), jax.tree.map(lambda x: x[:, None], written)


class _Loop(NamedTuple):
    slots: Slots
    step: Int[Array, ""]
    written: Written


@functools.partial(jax.jit, static_argnames="compute", donate_argnames="slots")
def write(
    model: GLM,
    slots: Slots,
    keep: Bool[Array, " B"],
    steps: Int[Array, ""],
    until_free: Bool[Array, ""],
    *,
    compute: Compute,
) -> tuple[Slots, Written]:
    """Writes up to ``steps`` (at most ``MOST_STEPS``) tokens to every active row.

    Args:
      keep: rows that are still wanted; the others end here.
      until_free: stop as soon as a row ends, because somebody waits for it.
    """
    rows = slots.token.shape[0]
    slots = dataclasses.replace(slots, active=slots.active & keep)
    begun = slots.active.sum()
    wide = rows, MOST_STEPS
    nothing = Written(
        jnp.full(wide, NO_TOKEN, jnp.int32),
        jnp.zeros(wide, jnp.float32),
        jnp.zeros((*wide, MOST_LIKELY), jnp.int32),
        jnp.zeros((*wide, MOST_LIKELY), jnp.float32),
    )

    def going(loop: _Loop) -> Bool[Array, ""]:
        active = loop.slots.active
        freed = until_free & (active.sum() < begun)
        return active.any() & (loop.step < steps) & ~freed

    def body(loop: _Loop) -> _Loop:
        slots, one = _step(model, loop.slots, compute)
        put = lambda whole, new: jax.lax.dynamic_update_slice_in_dim(
            whole, new[:, None], loop.step, axis=1
        )
        return _Loop(slots, loop.step + 1, jax.tree.map(put, loop.written, one))

    done = jax.lax.while_loop(going, body, _Loop(slots, jnp.int32(0), nothing))
    return done.slots, done.written


def _step(model: GLM, slots: Slots, compute: Compute) -> tuple[Slots, Written]:
    """Reads every active row's last token and chooses its next."""
    active, rules = slots.active, slots.rules
    k_end = jnp.where(active, slots.next.slot + 1, 0)[:, None]
    # An idle row may be one that is being read: its write goes beyond the cache and is dropped.
    slot = jnp.where(active, slots.next.slot, slots.cache.slots)
    hidden, cache = model.decode(
        jnp.where(active, slots.token, 0)[:, None], slots.next.positions(),
        jnp.zeros_like(k_end), k_end, slots.cache, slot, compute=compute,
    )  # fmt: skip
    logits = model.logits(hidden)[:, 0]
    token = _choose(logits, rules.sampling, slots.seen, slots.made)
    written = _report(logits, token, rules.likely & active, rules.sampling)
    made = slots.made + active
    rows = jnp.arange(len(token))
    return Slots(
        cache,
        slots.seen.at[rows, token].max(active),
        jnp.where(active, token, slots.token),
        slots.next.step(active),
        made,
        active & ~_ends(token, rules.stops) & (made < rules.limit),
        rules,
    ), written._replace(tokens=jnp.where(active, token, NO_TOKEN))


def _ends(token: Int[Array, " B"], stops: Int[Array, "B E"]) -> Bool[Array, " B"]:
    return (token[:, None] == stops).any(-1)


def _choose(logits, sampling: RowSampling, seen, made) -> Int[Array, " B"]:
    """``sample``, without a pass over what was seen where no row asks for it."""
    return jax.lax.cond(
        (sampling.repetition_penalty != 1).any(),
        lambda: sample(logits, sampling, seen, made),
        lambda: sample(logits, sampling, None, made),
    )


def _known(logits: Float[Array, "B V"], sampling: RowSampling) -> Float[Array, "B V"]:
    """Logits of the ids that stand for something."""
    known = jnp.arange(logits.shape[1]) < sampling.vocab_limit[:, None]
    return jnp.where(known, logits.astype(jnp.float32), -jnp.inf)


def _report(
    logits: Float[Array, "B V"], token, likely: Bool[Array, " B"], sampling: RowSampling
) -> Written:
    scores = jax.nn.log_softmax(_known(logits, sampling), axis=-1)
    chosen = jnp.take_along_axis(scores, token[:, None], axis=1)[:, 0]
    count = min(MOST_LIKELY, logits.shape[1])

    def best() -> tuple[Array, Array]:
        values, ids = jax.lax.top_k(scores, count)
        pad = [(0, 0), (0, MOST_LIKELY - count)]
        return jnp.pad(ids, pad), jnp.pad(values, pad, constant_values=-jnp.inf)

    shape = len(token), MOST_LIKELY
    none = lambda: (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    ids, values = jax.lax.cond(likely.any(), best, none)
    return Written(token, chosen, ids, values)
