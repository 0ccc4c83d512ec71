"""A model with an adapter: a prefix in front of its keys, or LoRA's products in its weights."""

from __future__ import annotations

import dataclasses
import functools

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array

from glm_jax.ckpts.trees import differences, from_plain, to_plain
from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.peft.adapter import Adapter
from glm_jax.peft.lora import attach_lora, merge_lora
from glm_jax.peft.prefix import PrefixEncoder


def attach(model: GLM, adapter: Adapter, *, merge: bool = True) -> GLM:
    """The model with the adapter in it; the one given stays as it was.

    Several LoRA may be put on one after the other, and one prefix.

    Args:
      merge: a LoRA goes into the weights. Where these are integers it stays beside them anyway.

    Raises:
      UserError: the adapter does not fit the model, or the model has a prefix already.
    """
    copy = jax.tree.map(lambda x: x, model)
    beside = _replicated(model.embedding[...])
    params = jax.tree.map(lambda x: jax.device_put(x, beside), dict(adapter.params))
    placed = dataclasses.replace(adapter, params=params)
    if adapter.kind == "prefix":
        return _attach_prefix(copy, placed)
    copy = attach_lora(copy, placed)
    return merge_lora(copy) if merge else copy


def _replicated(x: Array) -> Sharding:
    """Whole on every device that holds a part of ``x``."""
    if isinstance(x.sharding, NamedSharding):
        return NamedSharding(x.sharding.mesh, PartitionSpec())
    return x.sharding


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
