"""Weights as integers: symmetric, one scale per output row or per group of its columns.

The layout of THUDM's released int8 and int4 checkpoints (quantization.py and its kernels), which
have one scale per row: the even column lies in the high half of a byte, the odd one in the low
half, both signed. A TPU has a type of its own for them, jax.numpy.int4, eight numbers to a word,
which it reads in a fraction of the time that bytes take to be unpacked (``to_int4``).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
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


def is_packed(q: Array, bits: int) -> bool:
    """Whether a weight's numbers lie two to a byte."""
    return bits == 4 and q.dtype == jnp.int8


def to_int4(packed: Int8[Array, "*O I/2"]) -> Array:
    """The same numbers as int4 [*O, I], one matrix at a time where there are several: a matrix of
    bytes is all that is held besides."""
    one = lambda q: unpack_int4(q).astype(jnp.int4)
    return jax.lax.map(one, packed) if packed.ndim > 2 else one(packed)


def quantize(
    weight: Float[Array, "..."], bits: int, *, inputs: int = 1, group: int = 0
) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    """A weight [out..., in...] as integers and float16 scales [out...], or [out..., groups].

    Scale and quotient are rounded to float16 before the quotient is rounded to an integer, half to
    even: in float32 about one integer in a hundred would come out differently from the released
    ones (released quantization.py).

    Args:
      bits: 8, or 4 (packed along the last axis, which must be even).
      inputs: how many trailing axes are columns.
      group: columns per scale, counted over all input axes; 0: the whole row.

    Raises:
      ValueError: groups that do not divide the columns.
    """
    outer = weight.shape[: weight.ndim - inputs]
    columns = math.prod(weight.shape[len(outer) :])
    if columns % (group or columns):
        raise ValueError(f"{columns} columns do not divide into groups of {group}")
    half = weight.astype(jnp.float16).reshape(*outer, -1, group or columns)
    largest = jnp.abs(half).max(axis=-1, keepdims=True)
    scale = (largest.astype(jnp.float32) / LARGEST[bits]).astype(jnp.float16)
    quotient = half.astype(jnp.float32) / jnp.where(scale == 0, 1, scale).astype(jnp.float32)
    q = jnp.round(quotient.astype(jnp.float16)).astype(jnp.int8).reshape(weight.shape)
    return (pack_int4(q) if bits == 4 else q), scale.reshape((*outer, -1) if group else outer)


def dequantize(
    q: Int8[Array, "..."], scale: Float[Array, "..."], bits: int, *, group: int = 0
) -> Float[Array, "..."]:
    """``float(scale) * q`` in float32: what the released CPU kernel computes."""
    numbers = (unpack_int4(q) if is_packed(q, bits) else q).astype(jnp.float32)
    outer = scale.shape[:-1] if group else scale.shape
    grouped = numbers.reshape(*outer, scale.shape[-1] if group else 1, -1)
    scales = scale.reshape(*grouped.shape[:-1], 1).astype(jnp.float32)
    return (scales * grouped).reshape(numbers.shape)
