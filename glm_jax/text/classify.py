"""The classes of whole texts, for a model with a classification head."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glm_jax.config import GLMConfig
from glm_jax.errors import UserError
from glm_jax.nn import GLM, Compute
from glm_jax.text.layout import LaidOut, Rows, check_ids, lay_out
from glm_jax.text.score import TOKENS_AT_ONCE, batches, mesh_of, padded


def classify(
    model: GLM, prompts: Sequence[Sequence[int]], *, compute: Compute | None = None
) -> Float[np.ndarray, "N C"]:
    """Scores of every class for every text; their softmax are probabilities.

    >>> scores = glm_jax.classify(model, [tok.encode("What a waste of time.")])

    Args:
      prompts: ids as the released tokenizers give them, specials included.
      compute: how to compute; the type of the weights by default.

    Raises:
      UserError: the model has no classification head, or a text does not fit it.
    """
    if model.classifier is None:
        raise UserError(
            "this model has no classification head; train.finetune --task.name classify trains one"
        )
    rows = [lay_out_text(prompt, model.config) for prompt in prompts]
    if compute is None:
        compute = Compute(dtype=str(model.embedding.dtype))  # pyrefly: ignore[bad-argument-type]
    scores = np.zeros((len(rows), model.config.num_labels), np.float32)
    with mesh_of(model):
        for indices, width in batches([len(row.tokens) for row in rows], TOKENS_AT_ONCE):
            batch = padded([rows[i] for i in indices], width)
            scores[indices] = _classify(model, batch, compute)[: len(indices)]
    return scores


def lay_out_text(ids: Sequence[int] | Int[np.ndarray, " T"], config: GLMConfig) -> LaidOut:
    """One text to be classified: in GLM all of it sees all of it, later models read it causally. A
    prompt with its answer, for a reward model, is read as when it was written.

    Raises:
      UserError: it does not fit the model, or is for ChatGLM-6B, which was not released with a
        head.
    """
    if not config.prefix_lm or config.num_labels == 1:
        return lay_out(ids, config)
    if config.position != "learned":
        raise UserError("ChatGLM-6B has no classification head; GLM, ChatGLM2, 3 and GLM-4 do")
    tokens = check_ids(ids, config.vocab_size)
    if len(tokens) > config.max_seq_len:
        raise UserError(
            f"{len(tokens)} tokens are more than this model's {config.max_seq_len} positions"
        )
    positions = np.stack([np.arange(len(tokens)), np.zeros(len(tokens))]).astype(np.int32)
    return LaidOut(tokens, positions, len(tokens), None)


@functools.partial(jax.jit, static_argnums=2)
def _classify(model: GLM, batch: Rows, compute: Compute) -> Float[Array, "B C"]:
    return model.classify(*map(jnp.asarray, batch), compute=compute)
