"""A network whose layers are arrays of their own, as decoding on a CPU wants them.

XLA's CPU backend copies a layer's weights out of the stack whenever they are used. A training step
hardly notices, but a decoding step does little else than read the weights once.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from glm_jax.nn.linear import Linear

if TYPE_CHECKING:
    from glm_jax.nn.transformer import GLM


def unstacked(model: GLM, rows: int = 1) -> GLM:
    """The same network for reading and writing text; its layers hold copies of the weights.

    It cannot be trained, scanned, saved or given an adapter.

    Args:
      rows: sequences that will be decoded at a time. For more than one, float32 matrices are
        turned to [in..., out...], the faster order of XLA's CPU backend for a few rows (1.5 times
        at 8; for a single row the order as stored is the faster one, 1.1 times).
    """
    layers, head = _split(
        (model.layers, None if model.head is None else model.head),
        model.embedding,
        model.config.num_layers,
        rows > 1 and model.embedding.dtype == jnp.float32,
    )
    copy = jax.tree.map(lambda x: x, model)
    copy.layers = nnx.List(layers)
    if head is not None:
        copy.head, copy.head_inputs_first = nnx.data(head), True
    return copy


@functools.partial(jax.jit, static_argnums=(2, 3))
def _split(parts, embedding, count: int, turn: bool):
    stack, head = parts
    layers = [jax.tree.map(lambda x, i=i: x[i], stack) for i in range(count)]
    if not turn:
        return layers, None
    for layer in layers:
        for _, module in nnx.iter_modules(layer):
            if isinstance(module, Linear):
                _turn(module)
    table = (embedding if head is None else head)[...]
    return layers, nnx.Param(table.T, axes=("embed", "vocab"))


def _turn(module: Linear) -> None:
    weight = module.weight[...]
    outer = weight.ndim - module.num_inputs
    order = (*range(outer, weight.ndim), *range(outer))
    module.weight = nnx.Param(weight.transpose(order))
    module.inputs_first = True
