"""Text from prompts: ``generate`` for whole answers, ``stream`` for answers as they come."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.config import GLMConfig
from glm_jax.errors import UserError
from glm_jax.nn import GLM, Compute, KVCache
from glm_jax.text.decoding_loop import State, bucket, prefill, room, write
from glm_jax.text.layout import LaidOut
from glm_jax.text.prepare import decode_compute, prepare
from glm_jax.text.sampling import RowSampling
from glm_jax.text.score import lay_out_all, mesh_of
from glm_jax.text.stops import RowStop
from glm_jax.text.tokenizer import Tokenizer

Prompts = Sequence[Sequence[int]]
_BETWEEN_TEXTS = 8  # tokens between two looks for stop texts


def generate(
    model: GLM,
    prompts: Prompts,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    stop_ids: Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    min_new_tokens: int = 0,
    seed: int | Sequence[int] = 0,
    vocab_limit: int | None = None,
    num_samples: int = 1,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    keep_stop: bool = False,
    compute: Compute | None = None,
) -> list[Any]:
    """What follows each prompt, as ids without the one that stopped it.

    >>> [ids] = glm_jax.generate(model, [tok.encode("Hello")], max_new_tokens=16)

    A prompt's answer does not depend on what else is in the batch.

    Args:
      prompts: ids as the released tokenizers give them, specials included (``glm_jax.score``).
      max_new_tokens: fewer where the model's positions end.
      temperature: 0 takes the most likely token; the other settings as in ``RowSampling``.
      no_repeat_ngram: no run of this many tokens comes twice; 0: no matter.
      stop_ids: the config's by default; an empty sequence goes on to the end.
      stop: texts that end an answer; the token that completes one is its last. Needs ``tokenizer``.
      min_new_tokens: before so many no stop id is chosen.
      seed: of the sampling, for all prompts or for each.
      vocab_limit: ids from here on are never chosen, such as ``tok.vocab_size``.
      num_samples: answers per prompt; with more than one the result is a list per prompt.
      num_beams: beam search over this many, with ``length_penalty`` as the exponent of the length
        that divides a beam's log probability; 1: none.
      keep_stop: with the id that stopped it, where one did (not for beams and stop texts).
      compute: how to compute; the type of the weights by default.

    Returns:
      A list of ids per prompt.

    Raises:
      UserError: a prompt breaks the family's rule or leaves no room, or a setting is out of range.
    """
    _check(max_new_tokens, num_samples, num_beams, no_repeat_ngram, min_new_tokens)
    texts = (stop,) if isinstance(stop, str) else tuple(stop)
    if texts and tokenizer is None:
        raise UserError("stop texts are found in decoded text; pass the tokenizer as well")
    rows = lay_out_all(model, prompts)
    if not rows:
        return []
    if num_beams > 1:
        from glm_jax.text.beam import beam_search

        if temperature or num_samples > 1 or texts or repetition_penalty != 1:
            raise UserError("beam search has no temperature, repetition penalty or stop texts, and "
                            "gives one answer per prompt")  # fmt: skip
        return beam_search(
            model, rows, max_new_tokens, num_beams, length_penalty,
            stop_ids=stops(model.config, stop_ids), no_repeat_ngram=no_repeat_ngram,
            min_new=min_new_tokens, vocab_limit=vocab_limit, compute=decode_compute(model, compute),
        )  # fmt: skip
    seeds = np.broadcast_to(np.asarray(seed), (len(rows),))
    # Seeds of further samples are hashed, so that neighbouring seeds do not share texts.
    every = [int(s) + 0x9E3779B9 * j for s in seeds for j in range(num_samples)]
    sampling = RowSampling.make(
        len(every), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=every,
        vocab_limit=model.config.vocab_size if vocab_limit is None else vocab_limit,
    )  # fmt: skip
    run = _Run(
        model,
        [row for row in rows for _ in range(num_samples)],
        max_new_tokens,
        sampling,
        stop_ids,
        no_repeat_ngram,
        compute,
        least=min_new_tokens,
    )
    if texts and tokenizer is not None:
        answers = run.until_texts(max_new_tokens, [RowStop(tokenizer, texts) for _ in every])
    else:
        answers = run.until(max_new_tokens, keep_stop)
    if num_samples == 1:
        return answers
    return [answers[i : i + num_samples] for i in range(0, len(answers), num_samples)]


def stream(
    model: GLM,
    prompt: Sequence[int],
    *,
    every: int = 4,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    stop_ids: Sequence[int] | None = None,
    seed: int = 0,
    vocab_limit: int | None = None,
    remember: Remembered | None = None,
    compute: Compute | None = None,
) -> Iterator[list[int]]:
    """The ids of ``generate``, ``every`` few of them at a time; closing the iterator stops it.

    Args:
      remember: what an earlier call read and wrote need not be read again.

    Raises:
      UserError: as ``generate``, when the first ids are asked for.
    """
    _check(max_new_tokens, 1, 1, no_repeat_ngram, 0)
    if every < 1:
        raise UserError(f"every is {every}; it must be at least 1")
    sampling = RowSampling.make(
        1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed,
        vocab_limit=model.config.vocab_size if vocab_limit is None else vocab_limit,
    )  # fmt: skip
    rows = lay_out_all(model, [prompt])
    run = _Run(model, rows, max_new_tokens, sampling, stop_ids, no_repeat_ngram, compute, remember)
    given = 0
    for count in range(every, max_new_tokens + every, every):
        [ids] = run.until(min(count, max_new_tokens))
        if ids[given:]:
            yield ids[given:]
        given = len(ids)
        if run.finished:
            return


def stops(config: GLMConfig, stop_ids: Sequence[int] | None) -> tuple[int, ...]:
    """The ids that end a text.

    Raises:
      UserError: one is outside the vocabulary.
    """
    chosen = config.stop_ids if stop_ids is None else tuple(int(i) for i in stop_ids)
    for i in chosen:
        if stop_ids is not None and not 0 <= i < config.vocab_size:
            raise UserError(f"stop id {i} is outside the vocabulary of {config.vocab_size}")
    return tuple(chosen)


def _check(
    max_new_tokens: int, num_samples: int, num_beams: int, ngram: int, min_new_tokens: int
) -> None:
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("num_samples", num_samples, 1),
        ("num_beams", num_beams, 1),
        ("no_repeat_ngram", ngram, 0),
        ("min_new_tokens", min_new_tokens, 0),
    ):
        if value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")


class Remembered:
    """The cache of a conversation, so that its next turn reads what is new and nothing else.

    Only a causal model can go on this way. In a prompt that is read in both directions (GLM,
    ChatGLM-6B) each new turn changes what every earlier token saw, so all is read again.
    """

    def __init__(self) -> None:
        self._cache: KVCache | None = None
        self._ids = np.zeros(0, np.int32)
        self.reused = 0
        """Tokens that the last call did not have to read."""

    def take(self, row: LaidOut) -> tuple[KVCache, int] | None:
        """The cache and how many of the row's first tokens it holds; it is given away."""
        cache, self._cache = self._cache, None
        self.reused = 0
        if cache is None or row.sep:
            return None
        most = min(len(self._ids), len(row.tokens) - 1)  # the last token's logits are needed
        differs = np.flatnonzero(self._ids[:most] != row.tokens[:most])
        self.reused = int(differs[0]) if differs.size else most
        return (cache, self.reused) if self.reused else None

    def put(self, cache: KVCache, ids: np.ndarray) -> None:
        """A cache that holds these tokens in its first slots."""
        self._cache, self._ids = cache, ids


class _Run:
    """A batch being generated: read at once, written as far as asked."""

    def __init__(
        self,
        model: GLM,
        rows: list[LaidOut],
        max_new: int,
        sampling: RowSampling,
        stop_ids: Sequence[int] | None,
        ngram: int,
        compute: Compute | None,
        remember: Remembered | None = None,
        least: int = 0,
    ):
        self._remember = remember
        self._least = jnp.int32(least) if least else None
        self._model, self._sampling, self._ngram = prepare(model, max_new), sampling, ngram
        self._compute = decode_compute(model, compute)
        self._stops = stops(model.config, stop_ids)
        limits = [min(max_new, room(row, model.config)) for row in rows]
        if min(limits) < 1:
            at = limits.index(min(limits))
            raise UserError(
                f"prompt {at} of {len(rows[at].tokens)} ids leaves no room for an answer: this "
                f"model's positions end at {model.config.max_seq_len}"
            )
        self._limits = jnp.asarray(limits, jnp.int32)
        self._lengths = [len(row.tokens) for row in rows]
        penalised = bool((np.asarray(sampling.repetition_penalty) != 1).any())
        with mesh_of(model):
            self._state: State = prefill(
                self._model, rows, bucket(max(limits), 16), self._compute, track_seen=penalised,
                known=None if remember is None else remember.take(rows[0]),
            )  # fmt: skip
        self.finished = False

    def until(self, count: int, keep_stop: bool = False) -> list[list[int]]:
        """The answers as far as ``count`` tokens, without what stopped them unless it is kept."""
        padded = jnp.asarray([*self._stops, *[-1] * (8 - len(self._stops) % 8)], jnp.int32)
        with mesh_of(self._model):
            self._state = write(
                self._model, self._state, self._sampling, padded, self._limits,
                jnp.int32(count), self._least, ngram=self._ngram, compute=self._compute,
            )  # fmt: skip
        tokens, made, done = jax.device_get(
            (self._state.tokens, self._state.made, self._state.done)
        )
        self.finished = bool(done.all())
        if self._remember is not None:
            end = self._lengths[0] + int(made[0])
            self._remember.put(self._state.cache, tokens[0, :end])
        answers = []
        for row, length, number in zip(tokens, self._lengths, made, strict=True):
            ids = row[length : length + number].tolist()
            stopped = ids and ids[-1] in self._stops and not keep_stop
            answers.append(ids[:-1] if stopped else ids)
        return answers

    def until_texts(self, most: int, rows: list[RowStop]) -> list[list[int]]:
        """As ``until``, a row ended by its stop text as well; looked for every few tokens."""
        read = [0] * len(rows)
        for count in range(_BETWEEN_TEXTS, most + _BETWEEN_TEXTS, _BETWEEN_TEXTS):
            answers = self.until(min(count, most))
            for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
                row.push(answer[read[i] :])
                read[i] = len(answer)
            if self.finished:
                break
            found = jnp.asarray([row.at is not None for row in rows])
            self._state = dataclasses.replace(self._state, done=self._state.done | found)
            if found.all():
                break
        return [answer[: row.at] for answer, row in zip(answers, rows, strict=True)]
