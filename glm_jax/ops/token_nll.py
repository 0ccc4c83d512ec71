"""Log likelihood of single tokens, differentiable in each: what preference losses are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_nll(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    *,
    chunk: int = 512,
) -> Float[Array, "B T"]:
    """Negative log likelihood of each target under ``softmax(hidden @ head.T)``, in float32.

    ``chunk`` positions of every row are scored at a time, and again in the backward pass, so the
    [B, T, V] logits never exist at once. ``ops.linear_cross_entropy`` spares that second pass, but
    must know every token's weight beforehand, which here depends on what comes out.
    """
    length = targets.shape[1]
    size = min(chunk, length)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, -length % size)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def score(x: Float[Array, "B C D"], wanted: Int[Array, "B C"]) -> Float[Array, "B C"]:
        # The head is cast in here, so that its gradient is summed in the head's own type.
        table = head.astype(x.dtype)
        logits = jnp.einsum("BCD,VD->BCV", x, table, preferred_element_type=jnp.float32)
        # Picked by comparison: unlike a gather this stays local where the vocabulary is sharded.
        hit = jnp.arange(head.shape[0]) == wanted[..., None]
        return jax.nn.logsumexp(logits, axis=-1) - jnp.where(hit, logits, 0.0).sum(axis=-1)

    nll = jax.lax.map(lambda xs: score(*xs), (cut(hidden), cut(targets)))
    return jnp.moveaxis(nll, 0, 1).reshape(targets.shape[0], -1)[:, :length]
