"""The product of activations with integer weights, in the form that each backend is fast at.

Everywhere the weight stays as it is in memory. Where many rows are multiplied, integers become
floats on their way into the product. The few rows of a decoding step become integers instead
(``glm_jax.ops.digits``) on CPUs and on those TPUs that make floats more slowly than they read
integers (``chip.prefers_int8``).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from glm_jax.ops.chip import prefers_int8
from glm_jax.ops.digits import as_digits, from_digits
from glm_jax.ops.linear import FEW_ROWS, never_alone
from glm_jax.ops.quantized import dequantize, is_packed
from glm_jax.ops.quantized_cpu import by_floats_in_blocks, by_integers
from glm_jax.sharding import ways

# A TPU reads a weight in no less time than it multiplies 48 rows with it: digits as fine as float32
# cost nothing.
_TPU_DIGITS = 3
# Rows times groups up to which a TPU multiplies in less time than it reads the weight.
_SPREAD_ROWS = 256


def quantized_linear(
    x: Float[Array, "..."],
    q: Int[Array, "..."],
    scale: Float[Array, "..."],
    bias: Float[Array, "..."] | None = None,
    *,
    bits: int,
    inputs: int = 1,
    group: int = 0,
    pieces: int = 1,
) -> Float[Array, "..."]:
    """``x @ dequantize(q, scale).T + bias``, without holding the dequantised weight.

    Args:
      x: [..., in...].
      q, scale: as ``glm_jax.ops.quantized.quantize`` makes them, or q as ``to_int4`` does.
      pieces: into how many, of one size, the columns of both are cut over a mesh; each is rounded
        by itself, so that no device waits for the largest number of the others.

    Returns:
      [..., out...] of ``x``'s dtype.

    Raises:
      ValueError: the trailing axes differ.
    """
    outer = q.ndim - inputs
    columns = (*q.shape[outer:-1], q.shape[-1] * (2 if is_packed(q, bits) else 1))
    if columns != x.shape[x.ndim - inputs :]:
        raise ValueError(
            f"an int{bits} weight contracts {columns}, but the input of shape "
            f"{x.shape} ends in {x.shape[x.ndim - inputs :]}"
        )
    batch, out = x.shape[: x.ndim - inputs], q.shape[:outer]
    rows = math.prod(batch)
    x = x.reshape(rows, -1)
    if rows > max(FEW_ROWS, ways("batch")):
        y = _by_floats(x, *_matrices(q, scale, outer), bits, group)
    else:
        y = _few_rows(x, q.reshape(*out, -1), scale.reshape(*out, -1), bits, group, pieces)
    y = y.reshape(*batch, *out)
    return y if bias is None else y + bias


def _matrices(q: Array, scale: Array, outer: int) -> tuple[Array, Array]:
    """With their ``outer`` first axes as one, and what is behind them as another."""
    out = math.prod(q.shape[:outer])
    return q.reshape(out, -1), scale.reshape(out, -1)


def _by_floats(x, q, scale, bits: int, group: int) -> Float[Array, "R ..."]:
    """Integers of eight bits are exact in every float type: they are multiplied as they are, summed
    in float32, and each output is scaled once. Groups are scaled before they are multiplied.
    """
    if group:
        weight = dequantize(q, scale, bits, group=group).astype(x.dtype)
        return _float_product([x], [weight]).astype(x.dtype)
    y = _float_product(*_halves(x, q, bits)) * scale[..., 0].astype(jnp.float32)
    return y.astype(x.dtype)


def _by_groups(x, q, scale, bits: int, group: int) -> Float[Array, "R ..."]:
    """Each row becomes one row per group, zero elsewhere, and each output is scaled per group.

    The weight is neither scaled nor reshaped, of which a TPU would keep a copy, and what is
    multiplied more is nothing beside reading it.
    """
    groups = scale.shape[-1]
    xs, qs = _halves(x, q, bits)
    spread = []
    for part in xs:
        member = jnp.arange(part.shape[1]) // (part.shape[1] // groups)
        mine = member == jnp.arange(groups)[:, None]
        spread.append(jnp.where(mine, part[:, None], 0).reshape(-1, part.shape[1]))
    sums = _float_product(spread, qs).reshape(len(x), groups, *scale.shape[:-1])
    scales = jnp.moveaxis(scale, -1, 0).astype(jnp.float32)
    return (sums * scales).sum(1).astype(x.dtype)


def _halves(x: Array, q: Array, bits: int) -> tuple[list[Array], list[Array]]:
    """The columns of both; of packed numbers the even and the odd ones, never interleaved."""
    if not is_packed(q, bits):
        return [x], [q]
    return [x[..., 0::2], x[..., 1::2]], [q >> 4, (q << 4) >> 4]


def _float_product(xs: list[Array], weights: list[Array]) -> Float[Array, "R ..."]:
    total = jnp.zeros((), jnp.float32)
    for x, w in zip(xs, weights, strict=True):
        total += jax.lax.dot_general(
            x,
            w.astype(x.dtype),
            (((1,), (w.ndim - 1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
    return total


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _few_rows(x, q, scale, bits: int, group: int, pieces: int) -> Float[Array, "R ..."]:
    """Of a weight [out..., I] with its scales [out..., G]. On a TPU it does not become a matrix:
    its layer would be copied out of the stack."""
    spread = group and len(x) * scale.shape[-1] <= _SPREAD_ROWS
    floats = functools.partial(_by_groups if spread else _by_floats, bits=bits, group=group)
    flat = functools.partial(by_integers, bits=bits)
    if group:
        flat = functools.partial(by_floats_in_blocks, bits=bits, group=group)

    def on_cpu(x, q, scale):
        return flat(x, *_matrices(q, scale, q.ndim - 1)).reshape(len(x), *q.shape[:-1])

    def on_tpu(x, q, scale):
        if not group and prefers_int8():
            return _by_digits(x, q, scale, bits, pieces)
        return never_alone(lambda rows: floats(rows, q, scale), x)

    return jax.lax.platform_dependent(x, q, scale, cpu=on_cpu, tpu=on_tpu, default=floats)


@_few_rows.defjvp
def _few_rows_jvp(bits, group, pieces, primals, tangents):
    """Rounding has no gradient; the product is linear in ``x``, so its tangent is a product too."""
    _, q, scale = primals
    return _few_rows(*primals, bits, group, pieces), _by_floats(tangents[0], q, scale, bits, group)


def _by_digits(x, q, scale, bits: int, pieces: int) -> Float[Array, "R ..."]:
    """For one scale per output; of a weight [out..., I]."""
    digits, unit = as_digits(x.reshape(len(x), pieces, -1), _TPU_DIGITS)
    weight = q if pieces == 1 else q.reshape(*q.shape[:-1], pieces, -1)
    sums = jnp.zeros((), jnp.int32)
    for d, w in zip(*_halves(digits, weight, bits), strict=True):
        sums += _digit_product(d, w.astype(jnp.int8))
    y = from_digits(sums, unit).sum(1) * scale[..., 0].astype(jnp.float32)
    return y.astype(x.dtype)


def _digit_product(
    digits: Int8[Array, "R P C I"], weight: Int8[Array, "..."]
) -> Int[Array, "R P C ..."]:
    """Each piece with its own, of a weight [out..., P, I], or [out..., I] where there is one. The
    digits of all rows are one axis: a unit that multiplies matrices takes no more."""
    rows, pieces, count, _ = digits.shape
    product = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.int32)
    if pieces == 1:
        sums = product(
            digits.reshape(rows * count, -1), weight, (((1,), (weight.ndim - 1,)), ((), ()))
        )
        return sums.reshape(rows, 1, count, *sums.shape[1:])
    digits = digits.swapaxes(0, 1).reshape(pieces, rows * count, -1)
    sums = product(digits, weight, (((2,), (weight.ndim - 1,)), ((0,), (weight.ndim - 2,))))
    return sums.reshape(pieces, rows, count, *sums.shape[2:]).swapaxes(0, 1)
