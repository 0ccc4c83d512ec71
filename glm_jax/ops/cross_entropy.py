"""Cross entropy straight from hidden states: the [B, T, V] logits never exist at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def linear_cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    chunk: int = 512,
    shards: int = 1,
    label_smoothing: float = 0.0,
) -> tuple[tuple[Float[Array, ""], Float[Array, ""]], Float[Array, "B T"]]:
    """Weighted negative log likelihood of ``targets`` under ``softmax(hidden @ head.T)``.

    ``chunk`` positions of every row are scored at a time, in float32. Under differentiation the
    gradients are made in the same pass, from the same logits: a token's gradient depends on the
    rest of the loss through one common factor only, so nothing is computed twice.

    Args:
      shards: devices over which the rows are cut, if they divide them: a chunk then has as many
        positions on each, so that no device works on another's.
      label_smoothing: share of a target that all of the V tokens have in common (arXiv 1512.00567,
        section 7). It is in the sum; the nll of a position is without it.

    Returns:
      ``(sum of weight * nll, sum of weights)``, both unreduced so that batches of unequal token
      counts average correctly, and the nll of every position (float32, without gradient).
    """
    (b, t), shards = targets.shape, shards if targets.shape[1] % shards == 0 else 1
    cut = (x.reshape(b, shards, -1, *x.shape[2:]) for x in (hidden, targets, weights))
    hidden, targets, weights = cut
    weights = weights.astype(jnp.float32)
    loss, nll = _weighted_nll(chunk, label_smoothing, hidden, head, targets, weights)
    nll = nll.reshape(b, t)
    return (loss, weights.sum()), jax.lax.stop_gradient(nll)


def _chunks(chunk: int, *arrays: Array) -> list[Array]:
    """[B, C, T, ...] to [T / chunk, B, C, chunk, ...], padded with zeros (weight 0)."""
    length = arrays[0].shape[2]
    size = min(chunk, length)
    out = []
    for x in arrays:
        x = jnp.pad(x, [(0, 0), (0, 0), (0, -length % size)] + [(0, 0)] * (x.ndim - 3))
        out.append(jnp.moveaxis(x.reshape(*x.shape[:2], -1, size, *x.shape[3:]), 2, 0))
    return out


def _unchunk(x: Array, length: int) -> Array:
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :length]


def _score(smoothing, hidden, head, targets):
    """Logits, log-sum-exp, hits, loss and nll of one chunk. The target's logit is picked by
    comparison: unlike a gather this stays local when the vocabulary is sharded."""
    logits = jnp.einsum("BCTD,VD->BCTV", hidden, head, preferred_element_type=jnp.float32)
    lse = jax.nn.logsumexp(logits, axis=-1)
    hit = jnp.arange(head.shape[0]) == targets[..., None]
    nll = lse - jnp.where(hit, logits, 0.0).sum(axis=-1)
    if not smoothing:
        return logits, lse, hit, nll, nll
    loss = (1 - smoothing) * nll + smoothing * (lse - logits.mean(axis=-1))
    return logits, lse, hit, loss, nll


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighted_nll(chunk, smoothing, hidden, head, targets, weights):
    def one(xs):
        return _score(smoothing, xs[0], head, xs[1])[3 if smoothing else 4 :]

    scored = jax.lax.map(one, tuple(_chunks(chunk, hidden, targets)))
    loss, nll = (_unchunk(x, hidden.shape[2]) for x in (scored[0], scored[-1]))
    return (loss * weights).sum(), nll


def _weighted_nll_fwd(chunk, smoothing, hidden, head, targets, weights):
    def one(d_head, xs):
        h, t, w = xs
        logits, lse, hit, loss, nll = _score(smoothing, h, head, t)
        wanted = (1 - smoothing) * hit + smoothing / head.shape[0] if smoothing else hit
        d_logits = (jnp.exp(logits - lse[..., None]) - wanted) * w[..., None]
        d_logits = d_logits.astype(hidden.dtype)
        d_hidden = jnp.einsum("BCTV,VD->BCTD", d_logits, head)
        part = jnp.einsum("BCTV,BCTD->VD", d_logits, h, preferred_element_type=jnp.float32)
        return d_head + part, ((loss, nll)[0 if smoothing else 1 :], d_hidden)

    start = jnp.zeros(head.shape, jnp.float32)
    d_head, (scored, d_hidden) = jax.lax.scan(one, start, _chunks(chunk, hidden, targets, weights))
    loss, nll, d_hidden = (_unchunk(x, hidden.shape[2]) for x in (scored[0], scored[-1], d_hidden))
    saved = d_hidden, d_head.astype(head.dtype), loss
    return ((loss * weights).sum(), nll), saved


def _weighted_nll_bwd(chunk, smoothing, saved, cotangents):
    d_hidden, d_head, loss = saved
    scale = cotangents[0]
    d_weights = scale * loss
    return (
        (scale * d_hidden).astype(d_hidden.dtype),
        (scale * d_head).astype(d_head.dtype),
        None,
        d_weights,
    )


_weighted_nll.defvjp(_weighted_nll_fwd, _weighted_nll_bwd)
