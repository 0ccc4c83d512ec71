"""A network whose weights contract one axis each, as decoding on a TPU wants them.

The attention's output projection contracts heads and their channels. A TPU lays out its weight
[D, N, H] in tiles of [N, H], from which it makes tiles of [D, N * H] at every step of a decoding
loop: that takes three times as long as reading the weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

if TYPE_CHECKING:
    from glm_jax.nn.transformer import GLM


def flattened(model: GLM) -> GLM:
    """The same network for reading and writing text, with copies of the weights that it changes.

    It cannot be saved or given an adapter.
    """
    copy = jax.tree.map(lambda x: x, model)
    for layers in copy.layers if isinstance(copy.layers, nnx.List) else [copy.layers]:
        layers.attention.o_proj = layers.attention.o_proj.flattened()
    return copy


def is_flattened(model: GLM) -> bool:
    layers: Any = model.layers
    first = layers[0] if isinstance(layers, nnx.List) else layers
    return first.attention.o_proj.flat
