"""The language-model loss over a batch as ``glm_jax.data`` builds it."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Array, Float

from glm_jax.nn.attention import Keys
from glm_jax.nn.compute import Compute
from glm_jax.nn.transformer import GLM
from glm_jax.ops.cross_entropy import linear_cross_entropy


def lm_loss(
    model: GLM,
    batch: Mapping[str, Array],
    *,
    compute: Compute = Compute(),
    dropout_key: Array | None = None,
    embed_grad_scale: float = 1.0,
) -> tuple[tuple[Float[Array, ""], Float[Array, ""]], Float[Array, "B T"]]:
    """Cross entropy of ``batch["targets"]``, which are aligned with the tokens and not shifted.

    Args:
      batch: tokens, targets, loss_weights, k_start, k_end [B, T] and positions [B, 2, T].
      dropout_key: turns the config's dropouts on.
      embed_grad_scale: see ``GLM.embed``.

    Returns:
      ``(loss_sum, weight)`` unreduced, and the nll of every position (without gradient).
    """
    hidden = model.hidden(
        batch["tokens"],
        batch["positions"],
        Keys(batch["k_start"], batch["k_end"]),
        compute=compute,
        dropout_key=dropout_key,
        embed_grad_scale=embed_grad_scale,
    )
    return linear_cross_entropy(
        hidden,
        model.head_weight.astype(hidden.dtype),
        batch["targets"],
        batch["loss_weights"],
        chunk=compute.loss_chunk,
    )
