"""Rotary positions: exact angles at any length, and the two ways to pair dimensions."""

from __future__ import annotations

import functools

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


def whole_head(
    cos: Float[Array, "B T R"], sin: Float[Array, "B T R"], width: int, *, interleaved: bool
) -> tuple[Float[Array, "B T W"], Float[Array, "B T W"]]:
    """The factors of every dimension itself and of the one that it is paired with (``rotate``).

    Args:
      width: dimensions, of which the first 2R turn; the rest has factors 1 and 0.
      interleaved: pairs (0, 1), (2, 3).. (ChatGLM2 on) or (i, i + R) (ChatGLM-6B, "rotate half").
    """
    if interleaved:
        own, other = (jnp.stack(pair, -1).reshape(*cos.shape[:2], -1)
                      for pair in ((cos, cos), (-sin, sin)))  # fmt: skip
    else:
        own, other = (jnp.concatenate(pair, -1) for pair in ((cos, cos), (-sin, sin)))
    rest = [(0, 0), (0, 0), (0, width - own.shape[-1])]
    return jnp.pad(own, rest, constant_values=1.0), jnp.pad(other, rest)


def rotate(
    x: Float[Array, "B T N H"],
    own: Float[Array, "B T H"],
    other: Float[Array, "B T H"],
    *,
    apart: int,
) -> Float[Array, "B T N H"]:
    """``x * own + (what each dimension is paired with) * other``, in the type of ``x``.

    Args:
      apart: how far the two of a pair are apart: in each 2 * apart dimensions the first half is
        paired with the second.
    """
    turn, permute = (
        functools.partial(_turned, apart=apart),
        functools.partial(_permuted, apart=apart),
    )
    paired = jax.lax.platform_dependent(x, tpu=permute, default=turn)
    own, other = (t[..., None, :].astype(x.dtype) for t in (own, other))
    return x * own + paired * other


def _turned(x: Float[Array, "B T N H"], *, apart: int) -> Float[Array, "B T N H"]:
    first = jnp.arange(x.shape[-1]) // apart % 2 == 0
    return jnp.where(first, jnp.roll(x, -apart, -1), jnp.roll(x, apart, -1))


def _permuted(x: Float[Array, "B T N H"], *, apart: int) -> Float[Array, "B T N H"]:
    """The same as a product with a permutation, which is exact, and on a TPU a quarter of the work:
    there it is costly to move numbers along a vector, and an axis of pairs would have queries, and
    all that they are made from, laid out by token."""
    size = x.shape[-1]
    partner = np.arange(size) + np.where(np.arange(size) // apart % 2 == 0, apart, -apart)
    permutation = jnp.asarray(np.eye(size)[:, partner % size], x.dtype)
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum("BTNH,HJ->BTNJ", x, permutation, precision=exact)
