"""The language-model loss over a batch as ``glm_jax.data`` builds it."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Array, Float

from glm_jax.nn.attention import Keys
from glm_jax.nn.compute import Compute
from glm_jax.nn.transformer import GLM
from glm_jax.ops.attention import Order
from glm_jax.ops.attention.context import check_length, from_zigzag, to_zigzag
from glm_jax.ops.cross_entropy import linear_cross_entropy
from glm_jax.ops.gathered import cut_of
from glm_jax.sharding import constrain, ways

FIELDS = ("tokens", "positions", "k_start", "k_end", "targets", "loss_weights")


def lm_loss(
    model: GLM,
    batch: Mapping[str, Array],
    *,
    compute: Compute = Compute(),
    dropout_key: Array | None = None,
    embed_grad_scale: float = 1.0,
    label_smoothing: float = 0.0,
) -> tuple[tuple[Float[Array, ""], Float[Array, ""]], Float[Array, "B T"]]:
    """Cross entropy of ``batch["targets"]``, which are aligned with the tokens and not shifted.

    Args:
      batch: tokens, targets, loss_weights, k_start, k_end [B, T] and positions [B, 2, T].
      dropout_key: turns the config's dropouts on.
      embed_grad_scale: see ``GLM.embed``.
      label_smoothing: see ``linear_cross_entropy``.

    Where the mesh cuts rows over ``context`` they are put in zig-zag order first, so that every
    device has the same work, and attention follows.

    Returns:
      ``(loss_sum, weight)`` unreduced, and the nll of every position (without gradient).

    Raises:
      ValueError: the rows' length does not divide among twice the mesh's context.
    """
    shards = ways("length")
    order: Order = "natural" if shards == 1 else "zigzag"
    rows = {name: _ordered(batch[name], order, shards) for name in FIELDS}
    hidden = model.hidden(
        rows["tokens"],
        rows["positions"],
        Keys(rows["k_start"], rows["k_end"], order),
        compute=compute,
        dropout_key=dropout_key,
        embed_grad_scale=embed_grad_scale,
    )
    total, nll = linear_cross_entropy(
        hidden,
        model.head_weight.astype(hidden.dtype),
        rows["targets"],
        rows["loss_weights"],
        chunk=_loss_chunk(compute, len(hidden)),
        shards=shards,
        cut=cut_of(("vocab", "embed"), model.head_weight.shape),
        label_smoothing=label_smoothing,
    )
    return total, from_zigzag(nll, shards, 1) if order == "zigzag" else nll


def _loss_chunk(compute: Compute, rows: int) -> int:
    """Positions of every row that are scored at a time."""
    return max(1, compute.loss_chunk // max(1, rows // ways("batch")))


def _ordered(x: Array, order: Order, shards: int) -> Array:
    """A field of the batch, its last axis the tokens, laid out as the network computes it."""
    if order == "zigzag":
        check_length(x.shape[-1], order, shards)
        x = to_zigzag(x, shards, x.ndim - 1)
    return constrain(x, "batch", *(None,) * (x.ndim - 2), "length")
