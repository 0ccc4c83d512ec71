"""What a model attends to, for looking at it: the network itself never keeps these."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glm_jax.nn import GLM
from glm_jax.nn.block import Block
from glm_jax.nn.positions import Rope
from glm_jax.ops.attention.online import HIDDEN
from glm_jax.ops.attention.reference import visible
from glm_jax.text.layout import LaidOut, stack_rows


def attention_weights(model: GLM, row: LaidOut) -> Float[np.ndarray, "L N T T"]:
    """Attention probabilities of every layer and head, float32; a row of them sums to one.

    Args:
      model: without a prefix; its layers stacked, as they are loaded.
      row: from ``glm_jax.text.layout.lay_out``.
    """
    rows = stack_rows([row])
    trace = model.trace(rows.tokens, rows.positions, rows.k_start, rows.k_end)
    inputs = jnp.concatenate([trace.embedding[None], trace.layers[:-1]])
    rope = Rope.make(model.config, jnp.asarray(rows.positions))
    places = jnp.arange(len(row.tokens))
    seen = visible(jnp.asarray(rows.k_start), jnp.asarray(rows.k_end), places)
    per_layer = [jax.tree.map(lambda x, i=i: x[i], model.layers) for i in range(len(inputs))]
    found = [_probabilities(*pair, rope, seen) for pair in zip(per_layer, inputs, strict=True)]
    return np.asarray(jnp.stack(found))


def _probabilities(
    block: Block, x: Float[Array, "1 T D"], rope: Rope, seen: Array
) -> Float[Array, "N T T"]:
    normed = block.attention_norm(x)
    q, k = rope(block.attention.q_proj(normed)), rope(block.attention.k_proj(normed))
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) * q.shape[-1] ** -0.5
    return jax.nn.softmax(jnp.where(seen[:, 0], scores, HIDDEN), axis=-1)[0]
