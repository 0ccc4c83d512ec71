"""A few rows times a matrix of integers on a CPU.

XLA's backend would write the integers as floats to memory before it multiplies them. What it is
fast at is int8 times int8, and floats that stay in the processor's cache.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from glm_jax.ops.digits import as_digits, from_digits
from glm_jax.ops.quantized import dequantize, is_packed

# Output rows whose 4-bit numbers are unpacked at one time: they stay in the cache.
_UNPACKED_ROWS = 1024


def by_integers(x, q, scale, bits: int) -> Float[Array, "R O"]:
    """For one scale per output row. XLA's backend needs two rows or more to multiply fast, and
    hardly longer for four: two digits keep more than a bfloat16 does and three as much as a
    float32, at no cost for one row.
    """
    digits, unit = as_digits(x, 3 if x.dtype == jnp.float32 else 2)
    count = len(x) * digits.shape[1]
    rows = jnp.pad(digits.reshape(count, -1), ((0, count % 2), (0, 0)))
    if is_packed(q, bits):
        even, odd = rows[:, 0::2], rows[:, 1::2]

        def unpacked(block: Int8[Array, "O I"]) -> Int[Array, "O P"]:
            return _integer_product(block >> 4, even) + _integer_product((block << 4) >> 4, odd)

        sums = _in_blocks(unpacked, q)
    else:
        sums = _integer_product(q.astype(jnp.int8), rows)
    y = from_digits(sums.T[:count].reshape(*digits.shape[:2], len(q)), unit)
    return (y * scale[:, 0].astype(jnp.float32)).astype(x.dtype)


def _integer_product(weight: Int8[Array, "O I"], rows: Int8[Array, "P I"]) -> Int[Array, "O P"]:
    """Up to four rows are multiplied from the left, more from the right, and the barrier keeps XLA
    from fusing what follows: each is 1.3 times faster than otherwise on CPU."""
    few = len(rows) <= 4
    sides = (rows, weight) if few else (weight, rows)
    y = jax.lax.dot_general(*sides, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    y = jax.lax.optimization_barrier(y)
    return y.T if few else y


def by_floats_in_blocks(x, q, scale, bits: int, group: int) -> Float[Array, "R O"]:
    """Rows of the weight are dequantised a block at a time, which stays in the cache."""

    def block(parts: tuple[Array, Array]) -> Float[Array, "O R"]:
        weight = dequantize(*parts, bits, group=group)
        return jax.lax.dot_general(weight, x.astype(jnp.float32), (((1,), (1,)), ((), ())))

    return _in_blocks(block, (q, scale)).T.astype(x.dtype)


def _in_blocks(function, arrays):
    """``function`` of some rows of the arrays at a time."""
    count = len(jax.tree.leaves(arrays)[0])
    size = math.gcd(count, _UNPACKED_ROWS)
    if size == count or size < 32:
        return function(arrays)
    split = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), arrays)
    return jax.lax.map(function, split).reshape(count, -1)
