"""Floats as integers of several bytes, which units that multiply bytes take as they are.

A row's numbers become integers of 8 C bits, whose bytes are its C digits, from -128 to 127. A byte
holds its digit plus 128: then none borrows from the next, and each is found by itself.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int8


def as_digits(
    x: Float[Array, "*R I"], count: int
) -> tuple[Int8[Array, "*R C I"], Float[Array, "*R"]]:
    """Rows as ``x[r] = unit[r] * sum_c 256^(C - 1 - c) * digits[r, c]``, the largest of them last.

    Beside the largest number of a row, what is left out is at most 4e-3 with one digit (the usual
    quantisation of activations), 2e-5 with two, and 1e-7 with three, as in float32.

    Args:
      count: C, digits per number, at most 3.

    Returns:
      digits, and what the last of each row is worth.
    """
    x = x.astype(jnp.float32)
    places = 8 * np.arange(count - 1, -1, -1, dtype=np.int32)
    largest, offset = (sum(n << 8 * c for c in range(count)) for n in (127, 128))
    unit = jnp.abs(x).max(axis=-1) / largest
    unit = jnp.where(unit == 0, 1, unit)
    whole = jnp.round(x / unit[..., None]).astype(jnp.int32) + offset
    digits = (whole[..., None, :] >> places[:, None] & 255) - 128
    return digits.astype(jnp.int8), unit


def from_digits(sums: Int[Array, "*R C ..."], unit: Float[Array, "*R"]) -> Float[Array, "*R ..."]:
    """What ``x`` gives, from what each of its digits gives in something linear."""
    count, rest = sums.shape[unit.ndim], (1,) * (sums.ndim - unit.ndim - 1)
    worth = 256.0 ** np.arange(count - 1, -1, -1, dtype=np.float32).reshape(-1, *rest)
    total = (sums.astype(jnp.float32) * worth).sum(unit.ndim)
    return total * unit.reshape(*unit.shape, *rest)
