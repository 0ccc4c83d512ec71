"""A network whose layers lie in several stacks, so that some can be trained and others not.

Of a single stack the gradient has the size of all layers, whichever of them are wanted. The
backward pass ends at the first stack that has none.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

if TYPE_CHECKING:
    from glm_jax.nn.transformer import GLM


def cut_layers(model: GLM, bounds: Sequence[int]) -> GLM:
    """The same network with a new stack at each of these layers.

    Args:
      bounds: indices of layers, 0 and the number of layers left out or not.
    """
    edges = sorted({0, *bounds, model.config.num_layers})
    if len(edges) == 2:
        return model
    pairs = list(itertools.pairwise(edges))
    copy = jax.tree.map(lambda x: x, model)
    stacks = [jax.tree.map(lambda x, a=a, b=b: x[a:b], model.layers) for a, b in pairs]
    copy.layers, copy.stacks = nnx.List(stacks), tuple(b - a for a, b in pairs)
    return copy


def joined_layers(model: GLM) -> GLM:
    """Inverse of ``cut_layers``: all layers in one stack."""
    if not (model.stacks and isinstance(model.layers, nnx.List)):
        return model
    copy = jax.tree.map(lambda x: x, model)
    copy.layers = jax.tree.map(lambda *parts: jnp.concatenate(parts), *model.layers)
    copy.stacks = ()
    return copy
