"""A weight [out..., in...] and its optional bias, as floats or as integers with scales."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from glm_jax.config import GLMConfig
from glm_jax.nn import params
from glm_jax.ops import gathered
from glm_jax.ops.linear import linear
from glm_jax.ops.quantized import is_packed, quantize, to_int4
from glm_jax.ops.quantized_linear import quantized_linear
from glm_jax.sharding import ways

Axes = tuple[tuple[str, int], ...]
"""((logical axis, size), ...): shape and sharding in one place."""

BITS = {"int8": 8, "int4": 4}


class Beside(Protocol):
    """What is added to a matrix's product: ``glm_jax.peft.Lora``."""

    def __call__(
        self, x: Float[Array, "..."], inputs: int, dropout_key: Array | None = None
    ) -> Float[Array, "..."]: ...


class Linear(nnx.Module):
    """Maps the last ``len(inputs)`` axes of its input onto the axes of ``outputs``."""

    def __init__(
        self, key, outputs: Axes, inputs: Axes, *, std: float, bias: bool, dtype=jnp.float32
    ):
        axes, shape = zip(*outputs, *inputs, strict=True)
        self.axes, self.num_inputs, self.flat = axes, len(inputs), False
        self.weight = params.normal(key, shape, axes, std, dtype)
        self.bias = params.zeros(*_vector(outputs), dtype) if bias else None
        self.lora: Beside | None = nnx.data(None)

    def __call__(
        self, x: Float[Array, "..."], dropout_key: Array | None = None
    ) -> Float[Array, "..."]:
        """Args: dropout_key: of the LoRA, where there is one."""
        bias = None if self.bias is None else self.bias[...].astype(x.dtype)
        weight, (rows, inputs) = self.weight[...], _contracted(x, self)
        cut = gathered.cut_of(self.axes, weight.shape)
        if cut is not None and gathered.takes(rows, weight, cut, inputs):
            y = gathered.linear(rows, weight, cut, inputs)
            y = y if bias is None else y + bias
        else:
            y = linear(rows, weight.astype(x.dtype), bias, inputs=inputs)
        y = y if self.lora is None else y + self.lora(x, self.num_inputs, dropout_key)
        return checkpoint_name(y, "product")

    def flattened(self) -> Linear:
        """A copy whose weight holds all axes of its input as one."""
        copy = jax.tree.map(lambda x: x, self)
        copy.weight, copy.flat = _flattened(self.weight, self.num_inputs), True
        copy.axes = self.axes[: len(self.axes) - self.num_inputs + 1]
        return copy


class QuantizedLinear(nnx.Module):
    """``Linear`` with its weight as ``weight_q`` int8 and ``weight_scale`` float16 [out...].

    With 4 bits the last axis of ``weight_q`` is half as long, until they are made ``native``; with
    groups ``weight_scale`` has one more axis (``glm_jax.ops.quantized``). Neither is an
    ``nnx.Param``: what is trained beside them is told apart by type.
    """

    def __init__(
        self,
        key,
        outputs: Axes,
        inputs: Axes,
        *,
        bits: int,
        group: int = 0,
        std: float,
        bias: bool,
        dtype=jnp.float32,
    ):
        axes, shape = zip(*outputs, *inputs, strict=True)
        self.bits, self.group, self.num_inputs, self.flat = bits, group, len(inputs), False
        weight = jax.random.normal(key, shape, jnp.float32) * std
        q, scale = quantize(weight, bits, inputs=len(inputs), group=group)
        vector_shape, vector_axes = _vector(outputs)
        self.weight_q = params.frozen(q, axes)
        self.weight_scale = params.frozen(scale, vector_axes + (("groups",) if group else ()))
        self.bias = params.zeros(vector_shape, vector_axes, dtype) if bias else None
        self.lora: Beside | None = nnx.data(None)

    def __call__(
        self, x: Float[Array, "..."], dropout_key: Array | None = None
    ) -> Float[Array, "..."]:
        """Args: dropout_key: of the LoRA, where there is one."""
        bias = None if self.bias is None else self.bias[...].astype(x.dtype)
        weight = self.weight_q[...], self.weight_scale[...]
        rows, inputs = _contracted(x, self)
        form = {"bits": self.bits, "inputs": inputs, "group": self.group}
        y = quantized_linear(rows, *weight, bias, **form, pieces=self._pieces(inputs))
        y = y if self.lora is None else y + self.lora(x, self.num_inputs, dropout_key)
        return checkpoint_name(y, "product")

    def flattened(self) -> QuantizedLinear:
        """As of ``Linear``."""
        copy = jax.tree.map(lambda x: x, self)
        copy.weight_q, copy.flat = _flattened(self.weight_q, self.num_inputs), True
        return copy

    def _pieces(self, inputs: int) -> int:
        """How often the mesh cuts what is contracted, where it cuts the input with the weight."""
        axis = self.weight_q.get_metadata("axes")[-inputs]
        size, count = self.weight_q.shape[-inputs], ways(axis)
        return count if axis in ("heads", "mlp") and size % count == 0 else 1

    def native(self) -> QuantizedLinear:
        """A copy whose 4-bit numbers are of the type int4 (``glm_jax.ops.quantized.to_int4``)."""
        copy = jax.tree.map(lambda x: x, self)
        if is_packed(self.weight_q[...], self.bits):
            axes = self.weight_q.get_metadata("axes")
            copy.weight_q = type(self.weight_q)(jax.jit(to_int4)(self.weight_q[...]), axes=axes)
        return copy


class MakeLinear(Protocol):
    def __call__(
        self, key: Array, outputs: Axes, inputs: Axes, *, std: float, bias: bool
    ) -> Linear | QuantizedLinear: ...


def layer_linear(config: GLMConfig, dtype) -> MakeLinear:
    """How this network's layers keep their matrices."""

    def make(key, outputs, inputs, *, std, bias):
        kind = {"std": std, "bias": bias, "dtype": dtype}
        if config.quantization == "none":
            return Linear(key, outputs, inputs, **kind)
        form = {"bits": BITS[config.quantization], "group": config.quant_group}
        return QuantizedLinear(key, outputs, inputs, **form, **kind)

    return make


def _as_one(x: Array, count: int) -> Array:
    """With the last ``count`` axes as one."""
    return x if count == 1 else x.reshape(*x.shape[: x.ndim - count], -1)


def _contracted(x: Array, layer: Linear | QuantizedLinear) -> tuple[Array, int]:
    """The input as the layer's weight takes it, and how many of its axes are contracted."""
    if not layer.flat:
        return x, layer.num_inputs
    return _as_one(x, layer.num_inputs), 1


def _flattened(weight: nnx.Variable, inputs: int) -> nnx.Variable:
    axes = weight.get_metadata("axes")
    value = jax.jit(_as_one, static_argnums=1)(weight[...], inputs)
    return type(weight)(value, axes=axes[: len(axes) - inputs + 1])


def _vector(outputs: Axes) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Shape and axes of one number per output."""
    axes, shape = zip(*outputs, strict=True)
    # Sharding a vector over fsdp would save nothing and cost a gather.
    return shape, tuple("embed_vector" if a == "embed" else a for a in axes)
