"""Logits of whole texts, as a model gives them to each text alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from glm_jax.errors import UserError
from glm_jax.nn import GLM, Compute
from glm_jax.nn.attention import Keys
from glm_jax.text.layout import LaidOut, Rows, lay_out, stack_rows

_SHORTEST_BUCKET = 16
TOKENS_AT_ONCE = 8192
_LOGITS_AT_ONCE = 1 << 26  # float32: 256 MB


def score(
    model: GLM,
    prompts: Sequence[Sequence[int]],
    *,
    compute: Compute | None = None,
    max_tokens: int = TOKENS_AT_ONCE,
) -> list[Float[np.ndarray, "T V"]]:
    """Logits for every place of every prompt; row t of a result predicts token t + 1.

    >>> model, tok = glm_jax.load("ckpt/"), glm_jax.load_tokenizer("ckpt/")
    >>> ids = tok.encode("Hello")
    >>> [logits] = glm_jax.score(model, [ids])    # float32 [len(ids), vocab_size]

    Prompts are laid out by ``glm_jax.text.layout``, sorted by length, padded on the right to a
    power of two (so that few programs are compiled) and read in batches.

    Args:
      prompts: ids as the released tokenizers give them, specials included; of any lengths.
      compute: how to compute; the type of the weights by default.
      max_tokens: of a batch, padding included; a longer prompt is read alone.

    Raises:
      UserError: a prompt breaks the family's rule; the message names the prompt and the place.
    """
    rows = lay_out_all(model, prompts)
    if compute is None:
        compute = Compute(dtype=str(model.embedding.dtype))  # pyrefly: ignore[bad-argument-type]
    results: list[np.ndarray] = [np.empty(0)] * len(rows)
    with mesh_of(model):
        for indices, width in batches([len(row.tokens) for row in rows], max_tokens):
            batch = padded([rows[i] for i in indices], width)
            logits = _read(model, batch, compute)
            for i, one in zip(indices, logits, strict=False):
                results[i] = one
    return results


def lay_out_all(model: GLM, prompts: Iterable[Sequence[int]]) -> list[LaidOut]:
    rows = []
    for i, prompt in enumerate(prompts):
        try:
            rows.append(lay_out(prompt, model.config))
        except UserError as error:
            raise UserError(f"prompt {i}: {error}") from None
    return rows


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[tuple[list[int], int]]:
    """Indices of rows to read together, and the width to pad them to."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    width_of = lambda i: _power_of_two(lengths[i], _SHORTEST_BUCKET)
    while order:
        width = width_of(order[0])
        rows = max(1, max_tokens // width)
        group = [i for i in order[:rows] if width_of(i) == width]
        order = order[len(group) :]
        yield group, width


def _power_of_two(n: int, least: int = 1) -> int:
    return max(least, 1 << (n - 1).bit_length())


def padded(rows: list[LaidOut], width: int) -> Rows:
    """With repeated rows up to a power of two: the number of rows is part of a compiled shape."""
    return stack_rows(rows + rows[:1] * (_power_of_two(len(rows)) - len(rows)), width)


def _read(model: GLM, batch: Rows, compute: Compute) -> list[np.ndarray]:
    """Logits of each row of a batch, its padding cut off.

    All logits of a long row would not fit beside the model, so they leave the device in windows.
    """
    hidden = _hidden(model, *batch[:4], compute)
    count, width = batch.tokens.shape
    at_once = _LOGITS_AT_ONCE // (count * model.config.vocab_size)
    window = min(width, max(1, _power_of_two(at_once + 1) // 2))
    out = [np.empty((n, model.config.vocab_size), np.float32) for n in batch.lengths]
    for start in range(0, int(batch.lengths.max()), window):
        logits = np.asarray(_logits(model, hidden, start, window))
        for row, scores in zip(out, logits, strict=True):
            row[start : start + window] = scores[: max(0, len(row) - start)]
    return out


@functools.partial(jax.jit, static_argnames="compute")
def _hidden(
    model: GLM,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B 2 T"],
    k_start: Int[Array, "B T"],
    k_end: Int[Array, "B T"],
    compute: Compute,
) -> Float[Array, "B T D"]:
    return model.hidden(tokens, positions, Keys(k_start, k_end), compute=compute)


@functools.partial(jax.jit, static_argnames="window")
def _logits(model: GLM, hidden: Float[Array, "B T D"], start, window: int):
    part = jax.lax.dynamic_slice_in_dim(hidden, start, window, axis=1)
    return model.logits(part)


def mesh_of(model: GLM):
    """The mesh that the weights lie on, made current: activations are laid out by it."""
    sharding = model.embedding[...].sharding
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return contextlib.nullcontext()
    current = jax.sharding.get_abstract_mesh()
    return jax.set_mesh(sharding.mesh) if current.empty else contextlib.nullcontext()
