"""Beam search: the most likely whole answers, where greedy choice takes the likeliest next token.

A beam's score is its log probability divided by its length to the power of ``length_penalty``
(THUDM/GLM generation_utils.py, after arXiv 1609.08144's normalisation by length alone): 0 favours
short answers, 1 counts the mean, more favours long ones.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from glm_jax.errors import UserError
from glm_jax.nn import GLM, Compute
from glm_jax.text.decoding_loop import NO_TOKEN, State, bucket, prefill, room
from glm_jax.text.layout import LaidOut
from glm_jax.text.prepare import prepare
from glm_jax.text.sampling import NEVER, ban, ban_repeated_ngrams
from glm_jax.text.score import mesh_of

# A float that loses against every real score and can still be compared and added to.
_LOWEST = -1e30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beams:
    """B prompts of W beams each; their rows in ``state`` stand together."""

    state: State
    score: Float[Array, "B W"]
    """Log probability of each living beam."""
    finished: Int[Array, "B W S"]
    """Best answers that ended, ``NO_TOKEN`` behind them."""
    finished_score: Float[Array, "B W"]


def beam_search(
    model: GLM,
    rows: Sequence[LaidOut],
    max_new: int,
    beams: int,
    length_penalty: float,
    *,
    stop_ids: Sequence[int],
    no_repeat_ngram: int,
    min_new: int = 0,
    vocab_limit: int | None,
    compute: Compute,
) -> list[list[int]]:
    """The best answer to each prompt; arguments as ``glm_jax.generate``.

    Raises:
      UserError: a prompt leaves no room, or there are more beams than tokens to choose from.
    """
    limit = min(max_new, *(room(row, model.config) for row in rows))
    if limit < 1:
        raise UserError("a prompt leaves no room for an answer: the model's positions end there")
    vocab = min(model.config.vocab_size, vocab_limit or model.config.vocab_size)
    if 2 * beams > vocab:
        raise UserError(f"num_beams is {beams}; at most {vocab // 2} of {vocab} tokens")
    repeated = [row for row in rows for _ in range(beams)]
    stops = jnp.asarray([*stop_ids, *[NO_TOKEN] * (8 - len(stop_ids) % 8)], jnp.int32)
    model = prepare(model, limit)
    with mesh_of(model):
        state = prefill(model, repeated, bucket(limit, 16), compute)
        start = jnp.asarray([len(row.tokens) for row in repeated], jnp.int32)
        done = _search(
            model, state, start, stops, jnp.int32(limit), jnp.float32(length_penalty),
            jnp.int32(vocab), jnp.int32(min_new), beams=beams, ngram=no_repeat_ngram,
            compute=compute,
        )  # fmt: skip
    answers = np.asarray(jax.device_get(done))
    return [[int(i) for i in answer if i != NO_TOKEN] for answer in answers]


@functools.partial(jax.jit, static_argnames=("beams", "ngram", "compute"))
def _search(
    model: GLM,
    state: State,
    start: Int[Array, " R"],
    stops: Int[Array, " N"],
    limit: Int[Array, ""],
    length_penalty: Float[Array, ""],
    vocab: Int[Array, ""],
    least: Int[Array, ""],
    *,
    beams: int,
    ngram: int,
    compute: Compute,
) -> Int[Array, "B S"]:
    """The best answer of every prompt."""
    batch, width = len(start) // beams, state.tokens.shape[1]
    # All beams of a prompt start alike: only the first may go on.
    score = jnp.full((batch, beams), _LOWEST).at[:, 0].set(0.0)
    empty = jnp.full((batch, beams, width), NO_TOKEN, jnp.int32)
    first = Beams(state, score, empty, jnp.full((batch, beams), _LOWEST))
    normalise = lambda score, length: score / length.astype(jnp.float32) ** length_penalty

    def going(carry: tuple[Beams, Array]) -> Bool[Array, ""]:
        now, step = carry
        # The best that a living beam can still become, at its present length.
        best = normalise(now.score[:, 0], jnp.maximum(step, 1))
        open_ = best > now.finished_score[:, -1]
        return (step < limit) & open_.any()

    def body(carry: tuple[Beams, Array]) -> tuple[Beams, Array]:
        now, step = carry
        known = jnp.arange(now.state.logits.shape[-1]) < vocab
        each = jax.nn.log_softmax(jnp.where(known, now.state.logits, NEVER))
        if ngram:
            slots = now.state.next.slot
            each = ban_repeated_ngrams(each, now.state.tokens, slots, ngram)
        each = ban(each, stops, step < least).reshape(batch, beams, -1) + now.score[..., None]
        # Of twice as many candidates as beams at most every second one ends, for one stop token.
        top, index = jax.lax.top_k(each.reshape(batch, -1), 2 * beams)
        beam, token = index // each.shape[-1], (index % each.shape[-1]).astype(jnp.int32)
        ends = (token[..., None] == stops).any(-1) & (top > _LOWEST / 2)
        among = jnp.arange(2 * beams) < beams  # only what would have gone on may end
        history = _answers(now.state, start).reshape(batch, beams, width)
        taken = jnp.take_along_axis(history, beam[..., None], axis=1)

        ended = jnp.where(ends & among, normalise(top, step + 1), _LOWEST)
        finished, finished_score = _best(
            jnp.concatenate([now.finished, taken], axis=1),
            jnp.concatenate([now.finished_score, ended], axis=1),
            beams,
        )
        alive, order = jax.lax.top_k(jnp.where(ends, _LOWEST, top), beams)
        pick = lambda x: jnp.take_along_axis(x, order, axis=1)
        source = (jnp.arange(batch)[:, None] * beams + pick(beam)).reshape(-1)
        state = _continue(model, now.state, source, pick(token).reshape(-1), compute)
        return Beams(state, alive, finished, finished_score), step + 1

    last, step = jax.lax.while_loop(going, body, (first, jnp.int32(0)))
    living = _answers(last.state, start).reshape(batch, beams, width)
    answers, _ = _best(
        jnp.concatenate([last.finished, living], axis=1),
        jnp.concatenate([last.finished_score, normalise(last.score, jnp.maximum(step, 1))], axis=1),
        1,
    )
    return answers[:, 0]


def _answers(state: State, start: Int[Array, " R"]) -> Int[Array, "R S"]:
    """What each row has written, from the first slot on, ``NO_TOKEN`` behind it."""
    width = state.tokens.shape[1]
    at = start[:, None] + jnp.arange(width)
    found = jnp.take_along_axis(state.tokens, jnp.minimum(at, width - 1), axis=1)
    return jnp.where(at < state.next.slot[:, None], found, NO_TOKEN)


def _best(answers: Int[Array, "B C S"], score: Float[Array, "B C"], count: int):
    top, index = jax.lax.top_k(score, count)
    return jnp.take_along_axis(answers, index[..., None], axis=1), top


def _continue(
    model: GLM, state: State, source: Int[Array, " R"], token: Int[Array, " R"], compute: Compute
) -> State:
    """Every row takes over another row's past and adds a token to it."""
    cache = state.cache.take(source)
    at = jax.tree.map(lambda x: x[source], state.next)
    tokens = state.tokens[source].at[jnp.arange(len(token)), at.slot].set(token, mode="drop")
    k_end = at.slot[:, None] + 1
    hidden, cache = model.decode(
        token[:, None], at.positions(), jnp.zeros_like(k_end), k_end, cache, at.slot,
        compute=compute,
    )  # fmt: skip
    active = jnp.ones_like(state.done)
    logits = model.logits(hidden)[:, 0]
    return dataclasses.replace(
        state, cache=cache, logits=logits, next=at.step(active), tokens=tokens
    )
