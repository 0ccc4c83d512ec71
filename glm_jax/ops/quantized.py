"""Weights as integers: symmetric, one scale per output row, two 4-bit columns to a byte.

The layout of THUDM's released int8 and int4 checkpoints (quantization.py and its kernels): the even
column lies in the high half of a byte, the odd one in the low half, both signed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

LARGEST = {8: 127, 4: 7}


def pack_int4(q: Int8[Array, "*O I"]) -> Int8[Array, "*O I/2"]:
    """Numbers from -8 to 7 as half as many bytes."""
    return (q[..., 0::2] << 4) | (q[..., 1::2] & 15)


def unpack_int4(packed: Int8[Array, "*O I/2"]) -> Int8[Array, "*O I"]:
    """Inverse of ``pack_int4``."""
    # Shifts of signed bytes repeat the sign bit, which is what brings it back.
    pairs = jnp.stack([packed >> 4, (packed << 4) >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)


def quantize(
    weight: Float[Array, "..."], bits: int, *, inputs: int = 1
) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    """A weight [out..., in...] as integers and a float16 scale per output row.

    Scale and quotient are rounded to float16 before the quotient is rounded to an integer, half to
    even: in float32 about one integer in a hundred would come out differently from the released
    ones (released quantization.py).

    Args:
      bits: 8, or 4 (packed along the last axis, which must be even).
      inputs: how many trailing axes are columns.
    """
    columns = tuple(range(weight.ndim - inputs, weight.ndim))
    half = weight.astype(jnp.float16)
    largest = jnp.abs(half).max(axis=columns, keepdims=True)
    scale = (largest.astype(jnp.float32) / LARGEST[bits]).astype(jnp.float16)
    quotient = half.astype(jnp.float32) / jnp.where(scale == 0, 1, scale).astype(jnp.float32)
    q = jnp.round(quotient.astype(jnp.float16)).astype(jnp.int8)
    return (pack_int4(q) if bits == 4 else q), scale.reshape(weight.shape[: columns[0]])


def dequantize(q: Int8[Array, "..."], scale: Float[Array, "..."], bits: int) -> Float[Array, "..."]:
    """``float(scale) * q`` in float32: what the released CPU kernel computes."""
    numbers = unpack_int4(q) if bits == 4 else q
    rows = scale.reshape(*scale.shape, *(1,) * (q.ndim - scale.ndim))
    return rows.astype(jnp.float32) * numbers.astype(jnp.float32)


def quantized_linear(
    x: Float[Array, "..."],
    q: Int8[Array, "..."],
    scale: Float[Array, "..."],
    bias: Float[Array, "..."] | None = None,
    *,
    bits: int,
    inputs: int = 1,
) -> Float[Array, "..."]:
    """``x @ dequantize(q, scale).T + bias``, without ever holding the dequantised weight.

    Integers of eight bits are exact in every float type, so they are multiplied as they are, summed
    in float32, and each output is scaled once.

    Args:
      x: [..., in...].
      q, scale: as ``quantize`` makes them.

    Returns:
      [..., out...] of ``x``'s dtype.

    Raises:
      ValueError: the trailing axes differ.
    """
    numbers = unpack_int4(q) if bits == 4 else q
    outer = numbers.ndim - inputs
    if numbers.shape[outer:] != x.shape[x.ndim - inputs :]:
        raise ValueError(
            f"an int{bits} weight contracts {numbers.shape[outer:]}, but the input of shape "
            f"{x.shape} ends in {x.shape[x.ndim - inputs :]}"
        )
    contracted = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(outer, numbers.ndim))
    y = jax.lax.dot_general(
        x, numbers.astype(x.dtype), (contracted, ((), ())), preferred_element_type=np.float32
    )
    y = (y * scale.astype(jnp.float32)).astype(x.dtype)
    return y if bias is None else y + bias
