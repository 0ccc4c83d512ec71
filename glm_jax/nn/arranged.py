"""A network whose weights lie as decoding on a TPU wants them.

The attention's output projection contracts heads and their channels. A TPU lays out its weight
[D, N, H] in tiles of [N, H], from which it makes tiles of [D, N * H] at every step of a decoding
loop: that takes three times as long as reading the weight. And it takes twice as long to unpack
4-bit numbers that lie two to a byte as to read those of its own type int4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from glm_jax.errors import UserError
from glm_jax.nn.linear import QuantizedLinear
from glm_jax.ops.quantized import is_packed

if TYPE_CHECKING:
    from glm_jax.nn.transformer import GLM


def arranged(model: GLM, *, native: bool = True) -> GLM:
    """The same network for reading and writing text, with copies of the weights that it changes.

    It cannot be saved or given an adapter.

    Args:
      native: 4-bit numbers become int4, which is a copy of them all (``packed_bytes``).
    """
    copy = jax.tree.map(lambda x: x, model)
    for layers in _stacks(copy):
        layers.attention.o_proj = layers.attention.o_proj.flattened()
    for part, name, matrix in _integers(copy) if native else ():
        setattr(part, name, matrix.native())
    return copy


def is_arranged(model: GLM) -> bool:
    return _stacks(model)[0].attention.o_proj.flat


def check_not_prepared(model: GLM, purpose: str) -> None:
    """For what needs weights as they are stored.

    Raises:
      UserError: the model is ``arranged`` or ``unstacked``.
    """
    apart = isinstance(model.layers, nnx.List) and not model.stacks
    if apart or is_arranged(model):
        raise UserError(
            f"this model is one of glm_jax.prepare, which generates and scores; {purpose} the one "
            "that it was made from"
        )


def packed_bytes(model: GLM) -> int:
    """What the numbers that lie two to a byte take of each device."""
    held = [(matrix.weight_q[...], matrix.bits) for _, _, matrix in _integers(model)]
    return sum(q.addressable_shards[0].data.nbytes for q, bits in held if is_packed(q, bits))


def _stacks(model: GLM) -> list[Any]:
    return list(model.layers) if isinstance(model.layers, nnx.List) else [model.layers]


def _integers(model: GLM) -> list[tuple[Any, str, QuantizedLinear]]:
    """The matrices of integers, each with the module that holds it and its name there."""
    return [
        (part, name, matrix)
        for layers in _stacks(model)
        for part in (layers.attention, layers.mlp)
        for name, matrix in vars(part).items()
        if isinstance(matrix, QuantizedLinear)
    ]
