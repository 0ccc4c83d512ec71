"""A model with an adapter: a prefix in front of its keys, or LoRA's products in its weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Float

from glm_jax.ckpts.trees import differences, flat_paths, from_plain, to_plain
from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.nn.linear import Linear, QuantizedLinear
from glm_jax.peft.adapter import Adapter
from glm_jax.peft.prefix import PrefixEncoder


def attach(model: GLM, adapter: Adapter) -> GLM:
    """The model with the adapter in it; the one given stays as it was.

    Raises:
      UserError: the adapter does not fit the model, or the model has a prefix already.
    """
    copy = jax.tree.map(lambda x: x, model)
    beside = _replicated(model.embedding[...])
    params = jax.tree.map(lambda x: jax.device_put(x, beside), dict(adapter.params))
    return _ATTACH[adapter.kind](copy, dataclasses.replace(adapter, params=params))


def _replicated(x: Array) -> Sharding:
    """Whole on every device that holds a part of ``x``."""
    if isinstance(x.sharding, NamedSharding):
        return NamedSharding(x.sharding.mesh, PartitionSpec())
    return x.sharding


def lora_scale(settings: Mapping[str, Any]) -> float:
    """``alpha / r``, or ``alpha / sqrt(r)`` for rank-stabilised LoRA (arXiv 2312.03732)."""
    rank = settings["rank"]
    return settings["alpha"] / (rank**0.5 if settings.get("rslora") else rank)


def _attach_prefix(model: GLM, adapter: Adapter) -> GLM:
    if model.prefix is not None:
        raise UserError("the model has a prefix already; set model.prefix to None first")
    length, projection = adapter.settings["length"], bool(adapter.settings["projection"])
    table = adapter.params.get("embedding")
    width = table.shape[1] if table is not None and table.ndim == 2 else None
    make = functools.partial(
        PrefixEncoder, model.config, length, projection=projection, width=width
    )
    abstract = jax.eval_shape(lambda key: make(key), jax.random.key(0))
    if wrong := differences(to_plain(abstract), dict(adapter.params)):
        raise UserError(f"this prefix of {length} tokens does not fit the model: {wrong}")
    model.prefix = from_plain(dict(adapter.params), abstract)
    return model


def _attach_lora(model: GLM, adapter: Adapter) -> GLM:
    scale = lora_scale(adapter.settings)
    for path, (a, b) in lora_pairs(adapter.params).items():
        module = _module(model, path)
        outer = module.weight.ndim - module.num_inputs
        _check_pair(path, adapter.settings["rank"], module.weight.shape, outer, a, b)
        value = module.weight[...]
        merged = jax.jit(_merge, static_argnums=3, out_shardings=value.sharding)
        module.weight[...] = merged(value, a, b, scale)
    return model


def lora_pairs(params: Mapping[str, Any]) -> dict[str, tuple[Array, Array]]:
    """``lora_a`` and ``lora_b`` by their module's dotted path.

    Raises:
      UserError: one of a pair is missing, or there is something else.
    """
    flat = flat_paths(params)
    paths = dict.fromkeys(name.rpartition(".")[0] for name in flat)
    pairs = {path: (f"{path}.lora_a", f"{path}.lora_b") for path in paths}
    expected = {name for pair in pairs.values() for name in pair}
    if wrong := sorted(expected ^ set(flat)):
        raise UserError(f"a LoRA adapter has pairs of lora_a and lora_b; look at {wrong[0]}")
    return {path: (flat[a], flat[b]) for path, (a, b) in pairs.items()}


def _module(model: GLM, path: str) -> Linear:
    node: Any = model
    for name in path.split("."):
        node = getattr(node, name, None)
    if isinstance(node, QuantizedLinear):
        raise UserError(
            f"{path} is kept as integers, into which LoRA cannot be merged; convert the model "
            "without --keep-quantized"
        )
    if not isinstance(node, Linear) or not path.startswith("layers."):
        raise UserError(f"LoRA wants to change {path}, which is no matrix of this model's layers")
    return node


def _check_pair(path: str, rank: int, shape, outer: int, a: Array, b: Array) -> None:
    layers, outs, ins = shape[0], shape[1:outer], shape[outer:]
    for name, found, wanted in (
        ("lora_a", a.shape, (layers, rank, *ins)),
        ("lora_b", b.shape, (layers, *outs, rank)),
    ):
        if tuple(found) != wanted:
            raise UserError(f"{path}.{name} is {tuple(found)}; rank {rank} here needs {wanted}")


def _merge(
    weight: Float[Array, "L ..."],
    a: Float[Array, "L r ..."],
    b: Float[Array, "L ... r"],
    scale: float,
) -> Float[Array, "L ..."]:
    """``weight + scale * b @ a`` in float32, a layer at a time: a copy of one layer is small."""

    def layer(parts: tuple[Array, Array, Array]) -> Array:
        w, a, b = (part.astype(jnp.float32) for part in parts)
        product = jnp.tensordot(b, a, axes=1, precision=jax.lax.Precision.HIGHEST)
        return (w + scale * product).astype(weight.dtype)

    return jax.lax.map(layer, (weight, a, b))


_ATTACH = {"prefix": _attach_prefix, "lora": _attach_lora}
