"""The one place where a weight meets an activation, so that its layout is decided once."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float


def linear(x: Float[Array, "..."], weight: Float[Array, "..."], bias=None, *, inputs: int = 1):
    """``x @ weight.T + bias`` over the last ``inputs`` axes of both.

    Weights are stored [out..., in...], as released: conversion copies them, and on XLA's CPU
    backend this order is the faster one.

    Args:
      x: [..., in...].
      weight: [out..., in...], of ``x``'s dtype.
      bias: [out...] or None.
      inputs: how many trailing axes are contracted.

    Returns:
      [..., out...].

    Raises:
      ValueError: the trailing axes differ.
    """
    outer = weight.ndim - inputs
    if weight.shape[outer:] != x.shape[x.ndim - inputs :]:
        raise ValueError(
            f"a weight of shape {weight.shape} contracts {weight.shape[outer:]}, but the input of "
            f"shape {x.shape} ends in {x.shape[x.ndim - inputs :]}"
        )
    contracted = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(outer, weight.ndim))
    y = jax.lax.dot_general(x, weight, (contracted, ((), ())))
    return y if bias is None else y + bias
