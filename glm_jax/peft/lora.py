"""LoRA: two narrow matrices beside a frozen one (arXiv 2106.09685).

Beside floats or integers alike; into floats they can be merged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from glm_jax.ckpts.trees import flat_paths
from glm_jax.errors import UserError
from glm_jax.nn import GLM, check_not_prepared
from glm_jax.nn.linear import Linear, QuantizedLinear
from glm_jax.ops.dropout import dropout
from glm_jax.ops.linear import linear
from glm_jax.peft.adapter import Adapter

# The released fused matrices, by the parts that they are here.
RELEASED_NAMES = {
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "dense": ("o_proj",),
    "dense_h_to_4h": ("gate_proj", "up_proj"),
    "dense_4h_to_h": ("down_proj",),
}


class Lora(nnx.Module):
    """``scale * b @ a @ dropout(x)``, to be added to a matrix's product.

    Args:
      a: [r, in...]. b: [out..., r]. Stacked over layers both have L in front.
      scale: ``lora_scale`` of its settings.
      rate: of the dropout on its input.
      salt: tells its dropout from that of its neighbours.
    """

    def __init__(self, a: nnx.Param, b: nnx.Param, scale: float, rate: float = 0.0, salt: int = 0):
        self.a, self.b, self.scale, self.rate, self.salt = a, b, scale, rate, salt

    def __call__(
        self, x: Float[Array, "..."], inputs: int, dropout_key: Array | None = None
    ) -> Float[Array, "..."]:
        """[..., in...] with ``inputs`` such axes to [..., out...]."""
        if dropout_key is not None and self.rate:
            x = dropout(x, self.rate, jax.random.fold_in(dropout_key, self.salt))
        narrow = linear(x, self.a[...].astype(x.dtype), inputs=inputs)
        return self.scale * linear(narrow, self.b[...].astype(x.dtype))


def lora_scale(settings: Mapping[str, Any]) -> float:
    """``alpha / r``, or ``alpha / sqrt(r)`` for rank-stabilised LoRA (arXiv 2312.03732)."""
    rank = settings["rank"]
    return settings["alpha"] / (rank**0.5 if settings.get("rslora") else rank)


def matrices(model: GLM) -> dict[str, Linear | QuantizedLinear]:
    """The matrices of the layers by dotted path, such as ``layers.attention.q_proj``.

    Raises:
      UserError: the model is one of ``glm_jax.prepare``.
    """
    check_not_prepared(model, "adapt")
    found = {}
    for part, names in (
        ("attention", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("mlp", ("gate_proj", "up_proj", "down_proj")),
    ):
        for name in names:
            module = getattr(getattr(model.layers, part), name)
            if module is not None:
                found[f"layers.{part}.{name}"] = module
    return found


def lora_targets(model: GLM, wanted: Sequence[str]) -> tuple[str, ...]:
    """The paths of the matrices that are meant.

    Args:
      wanted: each ``all-linear``, a matrix's name (``q_proj``), a released one's
        (``query_key_value``), or a regular expression that matches the whole path.

    Raises:
      UserError: one of them means no matrix of this model.
    """
    paths, chosen = matrices(model), set()
    for name in wanted:
        names = RELEASED_NAMES.get(name, (name,))
        try:
            pattern = re.compile(name)
        except re.error as error:
            raise UserError(f"target {name!r} is no regular expression: {error}") from None
        hits = {
            path
            for path in paths
            if name == "all-linear" or path.split(".")[-1] in names or pattern.fullmatch(path)
        }
        if not hits:
            known = ", ".join(path.split(".")[-1] for path in paths)
            raise UserError(f"target {name!r} is none of all-linear, {known}, nor matches a path")
        chosen |= hits
    return tuple(path for path in paths if path in chosen)


def add_lora(
    model: GLM,
    targets: Sequence[str],
    key: Array,
    *,
    rank: int,
    scale: float,
    rate: float = 0.0,
    dtype=jnp.float32,
) -> GLM:
    """The model with a new LoRA beside each target, which changes nothing yet: ``b`` is zero.

    ``a`` is uniform up to ``1 / sqrt(columns)``, as PEFT's Kaiming initialisation comes out.

    Args:
      targets: paths, from ``lora_targets``.
    """
    model = jax.tree.map(lambda x: x, model)
    modules = matrices(model)
    for path, own in zip(targets, jax.random.split(key, len(targets)), strict=True):
        outs, ins = _sizes(modules[path])
        bound = math.prod(ins) ** -0.5
        a = jax.random.uniform(own, (outs[0], rank, *ins), dtype, -bound, bound)
        put_lora(modules, path, a, jnp.zeros((*outs, rank), dtype), scale, rate)
    return model


def put_lora(
    modules: Mapping[str, Linear | QuantizedLinear],
    path: str,
    a: Float[Array, "L r ..."],
    b: Float[Array, "L ... r"],
    scale: float,
    rate: float = 0.0,
) -> None:
    """Sets the LoRA of one matrix; one that is there already is joined to the new one: side by
    side in a larger rank the two products are one.

    Raises:
      UserError: the path or a shape does not fit.
    """
    if path not in modules:
        raise UserError(f"LoRA wants to change {path}, which is no matrix of this model's layers")
    module = modules[path]
    outs, ins = _sizes(module)
    rank = b.shape[-1]
    for name, found, fits in (
        ("lora_a", a.shape, (outs[0], rank, *ins)),
        ("lora_b", b.shape, (*outs, rank)),
    ):
        if tuple(found) != fits:
            raise UserError(f"{path}.{name} is {tuple(found)}; rank {rank} here needs {fits}")
    if (old := module.lora) is not None:
        assert isinstance(old, Lora)
        a = jnp.concatenate([old.a[...], a], axis=1)
        b = jnp.concatenate([old.b[...] * (old.scale / scale), b], axis=-1)
    axes = _axes(module)
    a_axes = (axes[0], "lora_rank", *axes[len(outs) :])
    salt = 3 + list(modules).index(path)  # below lie the keys that a block splits off
    module.lora = Lora(
        nnx.Param(a, axes=a_axes), nnx.Param(b, axes=(*axes[: len(outs)], "lora_rank")),
        scale, rate, salt,
    )  # fmt: skip


def has_lora(model: GLM) -> bool:
    return any(module.lora is not None for module in matrices(model).values())


def lora_params(model: GLM) -> dict[str, Any]:
    """The LoRA of every matrix that has one, as an adapter holds them."""
    params: dict[str, Any] = {}
    for path, module in matrices(model).items():
        if isinstance(module.lora, Lora):
            node = params
            for name in path.split("."):
                node = node.setdefault(name, {})
            node |= {"lora_a": module.lora.a[...], "lora_b": module.lora.b[...]}
    return params


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


def attach_lora(model: GLM, adapter: Adapter, *, rate: float = 0.0) -> GLM:
    """A copy of the model with the adapter's LoRA beside its matrices, ready to be trained.

    Raises:
      UserError: it does not fit.
    """
    model = jax.tree.map(lambda x: x, model)
    modules, rank = matrices(model), adapter.settings["rank"]
    for path, (a, b) in lora_pairs(adapter.params).items():
        if b.shape[-1] != rank:
            raise UserError(f"{path}.lora_b is {tuple(b.shape)}; its last axis is no rank {rank}")
        put_lora(modules, path, a, b, lora_scale(adapter.settings), rate)
    return model


def merge_lora(model: GLM) -> GLM:
    """A copy whose LoRA is in the weights. Beside integers, into which it cannot go, it stays."""
    model = jax.tree.map(lambda x: x, model)
    for module in matrices(model).values():
        if isinstance(module, Linear) and isinstance(module.lora, Lora):
            value = module.weight[...]
            merged = jax.jit(_merge, static_argnums=3, out_shardings=value.sharding)
            lora, module.lora = module.lora, None
            module.weight[...] = merged(value, lora.a[...], lora.b[...], lora.scale)
    return model


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


def _sizes(module: Linear | QuantizedLinear) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(layers, out...) and (in...)."""
    if isinstance(module, Linear):
        shape, packed = module.weight.shape, 1
    else:
        shape, packed = module.weight_q.shape, 2 if module.bits == 4 else 1
    split = len(shape) - module.num_inputs
    ins = shape[split:]
    return tuple(shape[:split]), (*ins[:-1], ins[-1] * packed)


def _axes(module: Linear | QuantizedLinear) -> tuple[str, ...]:
    held = module.weight if isinstance(module, Linear) else module.weight_q
    return held.get_metadata("axes")
