"""Turning the matrices of a network's layers into integers."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from glm_jax.ckpts.trees import flat_paths, from_plain, to_plain
from glm_jax.config import GLMConfig
from glm_jax.errors import UserError
from glm_jax.nn import GLM, check_not_prepared
from glm_jax.nn.linear import BITS
from glm_jax.ops.quantized import quantize as quantize_matrix

Integers = Literal["int8", "int4"]


def quantize(model: GLM, to: Integers, group_size: int | None = None) -> GLM:
    """The model with the matrices of its layers as int8 or int4; embedding and head stay floats.

    >>> small = glm_jax.quantize(glm_jax.load("ckpt/", dtype="bfloat16"), "int4", 64)

    One matrix at a time, so that memory grows by no more than the integers. The weights are rounded
    to float16 first, as the released files were made (``glm_jax.ops.quantized``).

    Args:
      group_size: input columns per scale, such as 32, 64 or 128: nearer to the floats for 16 bits
        per group. None: one scale per output row, as released.

    Raises:
      UserError: the model holds integers or LoRA already, is one of ``glm_jax.prepare``, or sizes
        do not divide.
    """
    config = quantized_config(model.config, to, group_size)
    check_not_prepared(model, "quantize")
    abstract = jax.eval_shape(lambda key: GLM(config, key), jax.random.key(0))
    plain: dict[str, Any] = {}
    have = flat_paths(to_plain(model))
    if any(".lora." in name for name in have):
        raise UserError("this model has LoRA beside its weights; merge_lora or quantize first")
    for name in flat_paths(to_plain(abstract)):
        if name.endswith("_scale"):
            continue
        found = {name: have[name]} if name in have else None
        if found is None:
            floats = name.removesuffix("_q")
            found = integers_of(floats, have[floats], config)
        for key, value in found.items():
            _put(plain, key, value)
    quantized = from_plain(plain, abstract)
    if model.prefix is not None:
        quantized.prefix = model.prefix
    return quantized


def quantized_config(config: GLMConfig, to: str, group_size: int | None = None) -> GLMConfig:
    """The config of the same network with such integers.

    Raises:
      UserError: it has integers already, no such kind, or sizes that do not divide.
    """
    if config.quantization != "none":
        raise UserError(f"this model's weights are {config.quantization} already")
    if to not in BITS:
        raise UserError(f"quantize is {to!r}; choose one of {', '.join(BITS)}")
    try:
        return config.replace(quantization=to, quant_group=group_size or 0)
    except ValueError as error:
        raise UserError(str(error)) from None


def integers_of(name: str, weight: Float[Array, "L ..."], config: GLMConfig) -> dict[str, Array]:
    """One stacked matrix of the layers as the arrays that ``config`` keeps in its place.

    Args:
      name: its path, such as ``layers.mlp.up_proj.weight``.
      config: with integers (``quantized_config``).
    """
    inputs = 2 if name.endswith("o_proj.weight") else 1
    q, scale = _integers(weight, BITS[config.quantization], inputs, config.quant_group)
    return {f"{name}_q": q, f"{name}_scale": scale}


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _integers(weight: Array, bits: int, inputs: int, group: int) -> tuple[Array, Array]:
    one = functools.partial(quantize_matrix, bits=bits, inputs=inputs, group=group)
    return jax.lax.map(one, weight)


def _put(tree: dict[str, Any], path: str, value: Array) -> None:
    *parents, last = path.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value
