"""Rotary positions: exact angles at any length, and the two ways to pair dimensions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def frequencies(dim: int, theta: float, *, float16: bool = False) -> np.ndarray:
    """``theta ** (-2 i / dim)`` for i below ``dim / 2``, float64.

    With ``float16`` rounded as ChatGLM-6B's buffers are: through float32 to half precision
    (released modeling_chatglm.py).
    """
    freqs = 1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    if float16:
        freqs = freqs.astype(np.float32).astype(np.float16).astype(np.float64)
    return freqs


def _high_product(a: Array, b: np.ndarray) -> Array:
    """The upper 32 bits of the 64-bit product of two uint32 arrays."""
    a_hi, a_lo, b_hi, b_lo = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    carry = a_hi * b_lo + ((a_lo * b_lo) >> 16)
    middle = a_lo * b_hi + (carry & 0xFFFF)
    return a_hi * b_hi + (carry >> 16) + (middle >> 16)


def rope_tables(
    positions: Int[Array, "B T"], freqs: np.ndarray
) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
    """cos and sin of ``positions * freqs``, float32, right to 1e-6 up to position 2**31.

    A float32 product loses whole turns at long range (0.06 rad at one million). Each frequency is
    kept as a 64-bit fixed-point number of turns instead; the product with a position wraps around
    by itself in integer arithmetic, and only the remaining fraction of a turn becomes a float.

    Args:
      positions: non-negative.
      freqs: [R] radians per position, each below 2 pi.
    """
    turns = [int(f / (2 * np.pi) * 2.0**64) for f in np.asarray(freqs, np.longdouble)]
    high = np.array([t >> 32 for t in turns], np.uint32)
    low = np.array([t & 0xFFFFFFFF for t in turns], np.uint32)
    steps = positions.astype(jnp.uint32)[..., None]
    fraction = steps * high + _high_product(steps, low)
    # As a signed number the fraction lies in [-1/2, 1/2) turn, where float32 is finest.
    signed = jax.lax.bitcast_convert_type(fraction, jnp.int32)
    angle = signed.astype(jnp.float32) * np.float32(2 * np.pi / 2**32)
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(
    x: Float[Array, "B T N H"],
    cos: Float[Array, "B T R"],
    sin: Float[Array, "B T R"],
    *,
    interleaved: bool,
) -> Float[Array, "B T N H"]:
    """Turns the first 2R dimensions of each head; the rest passes through.

    Args:
      interleaved: pairs (0, 1), (2, 3).. (ChatGLM2 on) or (i, i + R) (ChatGLM-6B, "rotate half").
    """
    rotated, rest = jnp.split(x, [2 * cos.shape[-1]], axis=-1)
    cos, sin = (t[..., None, :].astype(x.dtype) for t in (cos, sin))
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = jnp.split(rotated, 2, axis=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    if interleaved:
        rotated = jnp.stack(turned, axis=-1).reshape(rotated.shape)
    else:
        rotated = jnp.concatenate(turned, axis=-1)
    return jnp.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated
