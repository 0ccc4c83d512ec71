"""How likely a model finds given answers, token by token."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Array, Float

from glm_jax.nn.attention import Keys
from glm_jax.nn.compute import Compute
from glm_jax.nn.transformer import GLM
from glm_jax.ops.token_nll import token_nll


def row_hidden(
    model: GLM,
    rows: Mapping[str, Array],
    *,
    compute: Compute = Compute(),
    dropout_key: Array | None = None,
) -> Float[Array, "B T D"]:
    """Final hidden states of rows of ``glm_jax.data.preference``."""
    keys = Keys(rows["k_start"], rows["k_end"])
    return model.hidden(
        rows["tokens"], rows["positions"], keys, compute=compute, dropout_key=dropout_key
    )


def token_logps(
    model: GLM,
    hidden: Float[Array, "B T D"],
    rows: Mapping[str, Array],
    *,
    compute: Compute = Compute(),
) -> Float[Array, "B T"]:
    """Log probability of every token of an answer, at the slot that predicts it; 0 elsewhere.

    Args:
      hidden: of the rows.
      rows: targets [B, T], and loss_weights [B, T], which are 1 in the slots that predict a token
        of the answer.
    """
    nll = token_nll(hidden, model.head_weight, rows["targets"], chunk=compute.loss_chunk)
    return -nll * rows["loss_weights"]
