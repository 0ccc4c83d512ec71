"""A network whose layers are arrays of their own, as decoding on a CPU wants them.

XLA's CPU backend copies a layer's weights out of the stack whenever they are used. A training step
hardly notices, but a decoding step does little else than read the weights once.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
from flax import nnx

if TYPE_CHECKING:
    from glm_jax.nn.transformer import GLM


def unstacked(model: GLM) -> GLM:
    """The same network for reading and writing text; its layers hold copies of the weights.

    It cannot be trained, scanned, saved or given an adapter.
    """
    copy = jax.tree.map(lambda x: x, model)
    copy.layers = nnx.List(_split(model.layers, model.config.num_layers))
    return copy


@functools.partial(jax.jit, static_argnums=1)
def _split(stack, count: int):
    return [jax.tree.map(lambda x, i=i: x[i], stack) for i in range(count)]
