"""Parameters: each declared once, with its shape, its logical axes and its initialiser."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array


def normal(
    key: Array, shape: tuple[int, ...], axes: tuple[str, ...], std: float, dtype
) -> nnx.Param:
    return _param(jax.random.normal(key, shape, dtype) * jnp.asarray(std, dtype), axes)


def zeros(shape: tuple[int, ...], axes: tuple[str, ...], dtype) -> nnx.Param:
    return _param(jnp.zeros(shape, dtype), axes)


def ones(shape: tuple[int, ...], axes: tuple[str, ...], dtype) -> nnx.Param:
    return _param(jnp.ones(shape, dtype), axes)


class Frozen(nnx.Variable):
    """A weight that no optimizer touches: integers, and the scales that belong to them."""


def frozen(value: Array, axes: tuple[str, ...]) -> Frozen:
    return Frozen(value, axes=axes)


def _param(value: Array, axes: tuple[str, ...]) -> nnx.Param:
    if value.ndim != len(axes):
        raise ValueError(f"a parameter of shape {value.shape} needs {value.ndim} axes, not {axes}")
    return nnx.Param(value, axes=axes)


def is_variable(x: object) -> bool:
    return isinstance(x, nnx.Variable)


def stack(make: Callable[[Array], nnx.Module], count: int, key: Array) -> nnx.Module:
    """``count`` modules as one whose parameters have a leading ``layers`` axis, ready to scan."""
    stacked = jax.vmap(make)(jax.random.split(key, count))
    for param in jax.tree.leaves(stacked, is_leaf=is_variable):
        param.set_metadata(axes=("layers", *param.get_metadata("axes")))
    return stacked
