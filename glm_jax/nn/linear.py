"""A weight [out..., in...] and its optional bias."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from glm_jax.nn import params
from glm_jax.ops.linear import linear


class Linear(nnx.Module):
    """Maps the last ``len(inputs)`` axes of its input onto the axes of ``outputs``.

    ``outputs`` and ``inputs`` are ((logical axis, size), ...): shape and sharding in one place.
    """

    def __init__(self, key, outputs, inputs, *, std: float, bias: bool, dtype=jnp.float32):
        axes, shape = zip(*outputs, *inputs, strict=True)
        self.num_inputs = len(inputs)
        self.weight = params.normal(key, shape, axes, std, dtype)
        out_axes, out_shape = zip(*outputs, strict=True)
        # A bias is a vector: sharding it over fsdp would save nothing and cost a gather.
        out_axes = tuple("embed_vector" if a == "embed" else a for a in out_axes)
        self.bias = params.zeros(out_shape, out_axes, dtype) if bias else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        bias = None if self.bias is None else self.bias[...].astype(x.dtype)
        return linear(x, self.weight[...].astype(x.dtype), bias, inputs=self.num_inputs)
