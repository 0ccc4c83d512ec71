"""Cross entropy straight from hidden states: the [B, T, V] logits never exist at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from glm_jax.ops.gathered import Cut, by_rows, gather, rows_spec, summed

_PIECES = 4


def linear_cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    chunk: int = 512,
    shards: int = 1,
    cut: Cut | None = None,
    label_smoothing: float = 0.0,
) -> tuple[tuple[Float[Array, ""], Float[Array, ""]], Float[Array, "B T"]]:
    """Weighted negative log likelihood of ``targets`` under ``softmax(hidden @ head.T)``.

    ``chunk`` positions of every row are scored at a time, in float32. Under differentiation the
    gradients are made in the same pass, from the same logits: a token's gradient depends on the
    rest of the loss through one common factor only, so nothing is computed twice.

    Args:
      shards: devices over which the rows are cut, if they divide them: a chunk then has as many
        positions on each, so that no device works on another's.
      cut: how the devices that cut the rows cut ``head``: it is then gathered once, and its
        gradient summed over them once, whatever the number of chunks.
      label_smoothing: share of a target that all of the V tokens have in common (arXiv 1512.00567,
        section 7). It is in the sum; the nll of a position is without it.

    Returns:
      ``(sum of weight * nll, sum of weights)``, both unreduced so that batches of unequal token
      counts average correctly, and the nll of every position (float32, without gradient).
    """
    (b, t), shards = targets.shape, shards if targets.shape[1] % shards == 0 else 1
    split = (x.reshape(b, shards, -1, *x.shape[2:]) for x in (hidden, targets, weights))
    hidden, targets, weights = split
    weights = weights.astype(jnp.float32)
    if cut is not None and rows_spec(targets.shape) is None:
        cut = None
    loss, nll = _weighted_nll(chunk, label_smoothing, cut, hidden, head, targets, weights)
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


def _pieces(vocab_size: int) -> list[slice]:
    """Of the vocabulary, in whole vectors of 128."""
    size = -(-vocab_size // (_PIECES * 128)) * 128
    return [slice(a, min(a + size, vocab_size)) for a in range(0, vocab_size, size)]


def _score(smoothing, hidden, head, targets, form="VD"):
    """Logits, log-sum-exp, hits, loss and nll of one chunk. The target's logit is picked by
    comparison: unlike a gather this stays local when the vocabulary is sharded."""
    logits = jnp.einsum(f"BCTD,{form}->BCTV", hidden, head, preferred_element_type=jnp.float32)
    lse = jax.nn.logsumexp(logits, axis=-1)
    hit = jnp.arange(logits.shape[-1]) == targets[..., None]
    nll = lse - jnp.where(hit, logits, 0.0).sum(axis=-1)
    if not smoothing:
        return logits, lse, hit, nll, nll
    loss = (1 - smoothing) * nll + smoothing * (lse - logits.mean(axis=-1))
    return logits, lse, hit, loss, nll


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _weighted_nll(chunk, smoothing, cut, hidden, head, targets, weights):
    def score(hidden, head, targets, form="VD"):
        def one(xs):
            return _score(smoothing, xs[0], head, xs[1], form)[3 if smoothing else 4 :]

        scored = jax.lax.map(one, tuple(_chunks(chunk, hidden, targets)))
        return tuple(_unchunk(x, hidden.shape[2]) for x in (scored[0], scored[-1]))

    if cut is not None:
        rows, whole = rows_spec(targets.shape), score
        score = by_rows(
            lambda hidden, head, targets: whole(hidden, gather(head.T, cut.over), targets, "DV"),
            (rows, cut.spec(2), rows),
            (rows, rows),
        )
    loss, nll = score(hidden, head, targets)
    return (loss * weights).sum(), nll


def _weighted_nll_fwd(chunk, smoothing, cut, hidden, head, targets, weights):
    score = functools.partial(_scores_and_gradients, chunk, smoothing)
    if cut is not None:
        rows, whole = rows_spec(targets.shape), score

        def score(hidden, head, targets, weights):
            # Every chunk's part is summed over the devices at once, some of the vocabulary at a
            # time: the whole head's gradient in float32 would be the largest array of the step.
            def add(d_head, h, d_logits):
                for some in _pieces(d_logits.shape[-1]):
                    part = jnp.einsum("BCTD,BCTV->DV", h, d_logits[..., some])
                    d_head = d_head.at[:, some].add(summed(part, cut.over))
                return d_head

            start = jnp.zeros(head.T.shape, jnp.float32)
            whole_head = gather(head.T, cut.over)
            *found, d_head = whole(hidden, whole_head, targets, weights, start, add, form="DV")
            return *found, d_head.T

        specs = (rows, cut.spec(2), rows, rows), (rows, rows, rows, cut.spec(2))
        score = by_rows(score, *specs)
    loss, nll, d_hidden, d_head = score(hidden, head, targets, weights)
    return ((loss * weights).sum(), nll), (d_hidden, d_head, loss)


def _scores_and_gradients(
    chunk, smoothing, hidden, head, targets, weights, start=None, add=None, form="VD"
):
    """Loss and nll of every position, and the gradients of ``(loss * weights).sum()``.

    ``add(d_head, hidden, d_logits)`` puts a chunk's part to the head's gradient, from ``start`` on.
    ``form`` are the axes of ``head``: a gathered one is [D, V], which is how slices follow one
    another in memory.
    """

    def one(d_head, xs):
        h, t, w = xs
        logits, lse, hit, loss, nll = _score(smoothing, h, head, t, form)
        wanted = (1 - smoothing) * hit + smoothing / logits.shape[-1] if smoothing else hit
        d_logits = (jnp.exp(logits - lse[..., None]) - wanted) * w[..., None]
        d_logits = d_logits.astype(hidden.dtype)
        d_hidden = jnp.einsum(f"BCTV,{form}->BCTD", d_logits, head)
        return add(d_head, h, d_logits), ((loss, nll)[0 if smoothing else 1 :], d_hidden)

    def add_whole(d_head, h, d_logits):
        float32 = {"preferred_element_type": jnp.float32}
        return d_head + jnp.einsum(f"BCTV,BCTD->{form}", d_logits, h, **float32)

    add = add_whole if add is None else add
    start = jnp.zeros(head.shape, jnp.float32) if start is None else start
    d_head, (scored, d_hidden) = jax.lax.scan(one, start, _chunks(chunk, hidden, targets, weights))
    loss, nll, d_hidden = (_unchunk(x, hidden.shape[2]) for x in (scored[0], scored[-1], d_hidden))
    return loss, nll, d_hidden, d_head.astype(head.dtype)


def _weighted_nll_bwd(chunk, smoothing, cut, saved, cotangents):
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
