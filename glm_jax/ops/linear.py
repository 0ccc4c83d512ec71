"""The one place where a weight meets an activation, so that its layout is decided once."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Up to so many rows a product is bound by reading the weight: decoding.
FEW_ROWS = 16


def linear(
    x: Float[Array, "..."],
    weight: Float[Array, "..."],
    bias=None,
    *,
    inputs: int = 1,
    inputs_first: bool = False,
):
    """``x @ weight.T + bias`` over the last ``inputs`` axes of ``x``.

    Weights are stored [out..., in...], as released: conversion copies them.

    Args:
      x: [..., in...].
      weight: [out..., in...], of ``x``'s dtype.
      bias: [out...] or None.
      inputs: how many trailing axes are contracted.
      inputs_first: the weight is [in..., out...] instead (``glm_jax.nn.unstacked``).

    Returns:
      [..., out...].

    Raises:
      ValueError: the contracted axes differ.
    """
    outer = weight.ndim - inputs
    columns = weight.shape[:inputs] if inputs_first else weight.shape[outer:]
    if columns != x.shape[x.ndim - inputs :]:
        raise ValueError(
            f"a weight of shape {weight.shape} contracts {columns}, but the input of "
            f"shape {x.shape} ends in {x.shape[x.ndim - inputs :]}"
        )
    if inputs_first or math.prod(x.shape[: x.ndim - inputs]) <= FEW_ROWS:
        y = _few_rows(x, weight, inputs, inputs_first)
    else:
        contracted = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(outer, weight.ndim))
        y = jax.lax.dot_general(x, weight, (contracted, ((), ())))
    return y if bias is None else y + bias


def _few_rows(x: Array, weight: Array, inputs: int, inputs_first: bool) -> Array:
    """Both as plain matrices: with several contracted axes XLA's CPU backend first transposes the
    weight, at every step."""
    batch = x.shape[: x.ndim - inputs]
    columns = math.prod(x.shape[x.ndim - inputs :])
    out = weight.shape[inputs:] if inputs_first else weight.shape[: weight.ndim - inputs]
    rows = x.reshape(-1, columns)
    if inputs_first:
        matrix, over = weight.reshape(columns, -1), 0
    else:
        matrix, over = weight.reshape(-1, columns), 1

    def plain(rows: Array, matrix: Array) -> Array:
        return jax.lax.dot_general(rows, matrix, (((1,), (over,)), ((), ())))

    if x.dtype == jnp.float32:
        return plain(rows, matrix).reshape(*batch, *out)
    y = jax.lax.platform_dependent(rows, matrix, cpu=_low_precision_on_cpu(over), default=plain)
    return y.reshape(*batch, *out)


def _low_precision_on_cpu(over: int):
    """XLA's CPU backend has a fast product of bfloat16 for two rows or more that is summed into
    float32; any other first makes a float32 copy of the weight (12 times slower)."""

    def product(rows: Array, matrix: Array) -> Array:
        padded = jnp.concatenate([rows, rows]) if len(rows) == 1 else rows
        y = jax.lax.dot_general(
            padded, matrix, (((1,), (over,)), ((), ())), preferred_element_type=jnp.float32
        )
        return y[: len(rows)].astype(rows.dtype)

    return product
