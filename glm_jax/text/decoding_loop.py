"""The two compiled programs behind generation: reading prompts, and a loop that writes tokens.

Rows of unequal length stand in one batch, padded on the right; each writes its keys at its own next
slot, so a row gives what it gives alone. Lengths come in buckets, and how far to go is an argument
and not a constant, so a new prompt or a stream does not compile anything anew.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from glm_jax.config import GLMConfig
from glm_jax.errors import UserError
from glm_jax.nn import GLM, Compute, KVCache
from glm_jax.text.layout import LaidOut, stack_rows
from glm_jax.text.sampling import RowSampling, ban, ban_repeated_ngrams, sample

PREFILL_CHUNK = 2048
NO_TOKEN = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Next:
    """Where each row's next token goes."""

    slot: Int[Array, " B"]
    place: Int[Array, " B"]
    """Position of the next token."""
    moves: Int[Array, " B"]
    """1 where positions go on, 0 where Part B stands at its blank."""
    block: Int[Array, " B"]
    counts: Int[Array, " B"]
    """1 where block positions count up."""

    def positions(self) -> Int[Array, "B 2 1"]:
        return jnp.stack([self.place, self.block], axis=1)[..., None]

    def step(self, active: Bool[Array, " B"]) -> Next:
        on = active.astype(jnp.int32)
        return Next(
            self.slot + on,
            self.place + self.moves * on,
            self.moves,
            self.block + self.counts * on,
            self.counts,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that the loop carries. ``tokens`` holds prompts and what was generated."""

    cache: KVCache
    logits: Float[Array, "B V"]
    next: Next
    tokens: Int[Array, "B S"]
    made: Int[Array, " B"]
    """Tokens that each row has produced."""
    done: Bool[Array, " B"]
    seen: Bool[Array, "B V"] | None


def bucket(n: int, least: int = 64) -> int:
    """A length at least ``n``: four sizes to every power of two."""
    if n <= least:
        return least
    step = max(least // 4, 1 << max((n - 1).bit_length() - 3, 0))
    return -(-n // step) * step


def room(row: LaidOut, config: GLMConfig) -> int:
    """How many tokens can follow a prompt before the model's positions end."""
    if config.position == "learned":
        last = row.positions[:, -1]
        return config.max_seq_len - int(last[1] if row.sep else last[0])
    return config.max_seq_len - len(row.tokens)


def prefill(
    model: GLM,
    rows: Sequence[LaidOut],
    max_new: int,
    compute: Compute,
    *,
    track_seen: bool = False,
    chunk: int = PREFILL_CHUNK,
    known: tuple[KVCache, int] | None = None,
) -> State:
    """Reads the prompts; the state holds the logits of every row's first new token.

    A causal prompt longer than ``chunk`` is read in pieces, which bounds memory. One that is read
    in both directions cannot be: its first tokens see its last.

    Args:
      known: of a single causal row: a cache that holds its first tokens already, and how many. It
        is used up.

    Raises:
      UserError: there are no prompts.
    """
    if not rows:
        raise UserError("there is no prompt")
    lengths = np.array([len(row.tokens) for row in rows], np.int32)
    width, causal = int(lengths.max()), not any(row.sep for row in rows)
    start = 0 if known is None else known[1]
    unread = width - start
    chunk = chunk if causal and unread > chunk else bucket(unread, 16)
    end = start + -(-unread // chunk) * chunk
    batch = stack_rows(rows, end)
    slots = bucket(max(width + max_new, end))
    cache = None
    if known is not None:
        cache = known[0].with_room(slots)
        slots = cache.slots
    if cache is None:
        cache = _empty_cache(model, len(rows), slots, compute)
    last = jnp.zeros((len(rows), model.config.embed_dim), jnp.dtype(compute.dtype))
    for at in range(start, end, chunk):
        piece = slice(at, at + chunk)
        last, cache = _read(
            model, batch.tokens[:, piece], batch.positions[:, :, piece], batch.k_end[:, piece],
            cache, last, lengths, np.int32(at), compute,
        )  # fmt: skip
    tokens = np.full((len(rows), slots), NO_TOKEN, np.int32)
    tokens[:, :width] = np.where(np.arange(width) < lengths[:, None], batch.tokens[:, :width], -1)
    follow = np.stack([row.following(1)[:, 0] for row in rows])
    places = Next(
        jnp.asarray(lengths),
        jnp.asarray(follow[:, 0]),
        jnp.asarray([int(row.anchor is None) for row in rows]),
        jnp.asarray(follow[:, 1]),
        jnp.asarray([int(row.sep > 0) for row in rows]),
    )
    return _start(model, cache, last, places, tokens, track_seen)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _empty_cache(model: GLM, rows: int, slots: int, compute: Compute) -> KVCache:
    return model.new_cache(rows, slots, compute.cache_type)


@functools.partial(jax.jit, static_argnames="compute", donate_argnames=("cache", "last"))
def _read(model, tokens, positions, k_end, cache, last, lengths, start, compute):
    """One piece of every prompt; ``last`` takes the hidden state of a prompt's last token."""
    first = jnp.full_like(lengths, start)
    hidden, cache = model.decode(
        tokens, positions, jnp.zeros_like(k_end), k_end, cache, first, compute=compute
    )
    at = lengths - 1 - start
    here = (at >= 0) & (at < tokens.shape[1])
    found = jnp.take_along_axis(hidden, jnp.clip(at, 0)[:, None, None], axis=1)[:, 0]
    return jnp.where(here[:, None], found, last), cache


@functools.partial(jax.jit, static_argnames="track_seen", donate_argnames="cache")
def _start(model, cache, last, start: Next, tokens, track_seen: bool) -> State:
    rows = len(tokens)
    seen = None
    if track_seen:
        row = jnp.arange(rows)[:, None]
        outside = jnp.where(tokens >= 0, tokens, model.config.vocab_size)
        seen = jnp.zeros((rows, model.config.vocab_size), bool).at[row, outside].set(
            True, mode="drop"
        )  # fmt: skip
    zeros = jnp.zeros(rows, jnp.int32)
    logits = model.logits(last[:, None])[:, 0]
    return State(cache, logits, start, tokens, zeros, zeros.astype(bool), seen)


@functools.partial(jax.jit, static_argnames=("ngram", "compute"), donate_argnames="state")
def write(
    model: GLM,
    state: State,
    rows: RowSampling,
    stop_ids: Int[Array, " N"],
    limit: Int[Array, " B"],
    until: Int[Array, ""],
    least: Int[Array, ""] | None = None,
    *,
    ngram: int = 0,
    compute: Compute,
) -> State:
    """Writes tokens until every row is done or has ``until`` of them.

    Args:
      stop_ids: tokens that end a row (and are written).
      limit: tokens that each row may have in all.
      least: tokens that each row has before a stop id may be chosen.
      ngram: no run of this many tokens comes twice; 0: no matter.
    """

    def going(state: State) -> Bool[Array, ""]:
        return (~state.done & (state.made < until)).any()

    def body(state: State) -> State:
        active = ~state.done
        logits = state.logits
        if ngram:
            logits = ban_repeated_ngrams(logits, state.tokens, state.next.slot, ngram)
        if least is not None:
            logits = ban(logits, stop_ids, (state.made < least)[:, None])
        token = sample(logits, rows, state.seen, state.made)
        row = jnp.arange(len(token))
        at = jnp.where(active, state.next.slot, state.tokens.shape[1])
        tokens = state.tokens.at[row, at].set(token, mode="drop")
        seen = state.seen
        if seen is not None:
            seen = seen.at[row, token].max(active)
        made = state.made + active
        done = state.done | (token[:, None] == stop_ids).any(-1) | (made >= limit)
        k_end = state.next.slot[:, None] + 1
        hidden, cache = model.decode(
            jnp.where(active, token, 0)[:, None],
            state.next.positions(),
            jnp.zeros_like(k_end),
            k_end,
            state.cache,
            jnp.where(active, state.next.slot, state.tokens.shape[1]),
            compute=compute,
        )
        return State(
            cache, model.logits(hidden)[:, 0], state.next.step(active), tokens, made, done, seen
        )

    return jax.lax.while_loop(going, body, state)
