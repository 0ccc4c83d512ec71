"""The one place where a weight meets an activation, so that its layout is decided once."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glm_jax.sharding import ways

# Up to so many rows a product is bound by reading the weight: decoding.
FEW_ROWS = 16
# Up to so many a product of float32 is faster on CPU with the weight on the left.
_WEIGHT_FIRST_ROWS = 48


def linear(
    x: Float[Array, "..."],
    weight: Float[Array, "..."],
    bias=None,
    *,
    inputs: int = 1,
):
    """``x @ weight.T + bias`` over the last ``inputs`` axes of ``x``.

    Weights are stored [out..., in...], as released: conversion copies them.

    Args:
      x: [..., in...].
      weight: [out..., in...], of ``x``'s dtype.
      bias: [out...] or None.
      inputs: how many trailing axes are contracted.

    Returns:
      [..., out...].

    Raises:
      ValueError: the contracted axes differ.
    """
    outer = weight.ndim - inputs
    columns = weight.shape[outer:]
    if columns != x.shape[x.ndim - inputs :]:
        raise ValueError(
            f"a weight of shape {weight.shape} contracts {columns}, but the input of "
            f"shape {x.shape} ends in {x.shape[x.ndim - inputs :]}"
        )
    few = _WEIGHT_FIRST_ROWS if x.dtype == jnp.float32 else FEW_ROWS
    if math.prod(x.shape[: x.ndim - inputs]) <= max(few, ways("batch")):
        y = _few_rows(x, weight, inputs)
    else:
        # As one axis: several contracted axes a TPU transposes, and it does so before a loop over
        # layers and holds a copy of this weight of all of them.
        x = x.reshape(*x.shape[: x.ndim - inputs], -1)
        weight = weight.reshape(*weight.shape[:outer], -1)
        y = jax.lax.dot_general(x, weight, (((x.ndim - 1,), (outer,)), ((), ())))
    return y if bias is None else y + bias


def _few_rows(x: Array, weight: Array, inputs: int) -> Array:
    """On CPU and GPU both as plain matrices: with several contracted axes XLA's CPU backend first
    transposes the weight, at every step."""
    batch, outer = x.shape[: x.ndim - inputs], weight.shape[: weight.ndim - inputs]
    columns = math.prod(x.shape[x.ndim - inputs :])
    on_cpu = _weight_first if x.dtype == jnp.float32 else _summed_in_float32

    def flat(product):
        return lambda x, w: product(x, w.reshape(-1, columns)).reshape(len(x), *outer)

    y = jax.lax.platform_dependent(
        x.reshape(-1, columns), weight.reshape(*outer, columns),
        cpu=flat(on_cpu), tpu=_two_rows_or_more, default=flat(_rows_first),
    )  # fmt: skip
    return y.reshape(*batch, *outer)


def _two_rows_or_more(
    rows: Float[Array, "R I"], weight: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Of a weight [out..., I], not as a matrix: its layer would be copied out of the stack."""
    axes = (((1,), (weight.ndim - 1,)), ((), ()))
    return never_alone(lambda rows: jax.lax.dot_general(rows, weight, axes), rows)


def _rows_first(rows: Float[Array, "R I"], matrix: Float[Array, "O I"]) -> Float[Array, "R O"]:
    return jax.lax.dot_general(rows, matrix, (((1,), (1,)), ((), ())))


def never_alone(
    product: Callable[[Float[Array, "S I"]], Float[Array, "S ..."]], rows: Float[Array, "R I"]
) -> Float[Array, "R ..."]:
    """``product(rows)``, with a row of zeros beside each row that is alone on its device.

    XLA's TPU backend multiplies a single row in the vector unit, which takes three times as long as
    reading the weight does; two rows go through the matrix unit.
    """
    if len(rows) == 1:  # without another axis, which costs up to 3 % of a step
        return product(jax.lax.optimization_barrier(jnp.pad(rows, ((0, 1), (0, 0)))))[:1]
    if len(rows) > ways("batch"):
        return product(rows)
    pairs = jax.lax.optimization_barrier(jnp.pad(rows[:, None], ((0, 0), (0, 1), (0, 0))))
    y = product(pairs.reshape(-1, rows.shape[1]))
    return y.reshape(len(rows), 2, *y.shape[1:])[:, 0]


def _weight_first(rows: Float[Array, "R I"], matrix: Float[Array, "O I"]) -> Float[Array, "R O"]:
    """Twice as fast as rows first for 2 to 16 rows, 1.4 times for 32, the same from 64 on. The
    barrier keeps XLA from turning the product round again."""
    if len(rows) == 1:
        return _rows_first(rows, matrix)
    y = jax.lax.dot_general(matrix, rows, (((1,), (1,)), ((), ())))
    return jax.lax.optimization_barrier(y).T


def _summed_in_float32(
    rows: Float[Array, "R I"], matrix: Float[Array, "O I"]
) -> Float[Array, "R O"]:
    """XLA's CPU backend has a fast product of bfloat16 for two rows or more that is summed into
    float32; any other first makes a float32 copy of the weight (12 times slower)."""
    padded = jnp.concatenate([rows, rows]) if len(rows) == 1 else rows
    y = jax.lax.dot_general(
        padded, matrix, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    return y[: len(rows)].astype(rows.dtype)
