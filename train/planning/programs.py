"""The project's own programs, lowered for devices that need not exist."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glm_jax import sharding
from glm_jax.config import flops_per_token
from glm_jax.nn import GLM, Compute, KVCache, lm_loss
from glm_jax.text.decoding_loop import PREFILL_CHUNK, Next, State, _read, write
from glm_jax.text.sampling import RowSampling
from train import trainer
from train.losses import blank_infilling_loss
from train.optim import Optimizer
from train.planning.question import Question


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled, and what is known of it without a compiler."""

    lowered: Any
    shares: Mapping[str, int]
    """Bytes per device of what goes in, by kind, from shapes and shardings."""
    flops: int
    """Model FLOPs of one call over all devices (``glm_jax.config.flops_per_token``)."""
    tokens: int
    """Tokens of one call over all devices."""
    calls: int = 1
    """Calls that the whole task takes: pieces of a prompt."""


def lower(question: Question, devices: Any) -> Program:
    """The question's program for these devices, under its mesh."""
    mesh = _mesh(question, devices)
    jax.random.key(0)  # made outside the mesh, so that no described device is asked to make it
    make = {"prefill": _prefill, "decode": _decode}.get(question.task, _train)
    with jax.set_mesh(mesh):
        return make(question, mesh)


def _mesh(question: Question, devices: Any) -> Mesh:
    """The project's mesh; of several slices, ``data`` goes over the slices first."""
    slices = question.where.slices
    if slices == 1:
        return sharding.make_mesh(sharding.MeshConfig(*question.mesh), devices)
    data, *inside = question.mesh
    grid = mesh_utils.create_hybrid_device_mesh(
        (data // slices, *inside), (slices, 1, 1, 1), devices=devices
    )
    return Mesh(grid, sharding.MESH_AXES)


def _train(question: Question, mesh: Mesh) -> Program:
    """Full-parameter AdamW with the loss of pretraining or fine-tuning, dropout as the preset's."""
    config = question.config
    compute = Compute(dtype="bfloat16", remat=question.remat)
    optimizer, dtype = Optimizer(), jnp.dtype(question.param_dtype)
    tx = optimizer.make()
    init = lambda key: trainer.init_state(lambda k: GLM(config, k, param_dtype=dtype), tx, key)
    state = trainer.abstract_state(init, mesh)
    rows = sharding.batch_shardings(mesh)

    def array(kind, *middle):
        shape = (question.rows, *middle, question.length)
        return jax.ShapeDtypeStruct(shape, kind, sharding=rows)

    batch = {name: array(jnp.int32) for name in ("tokens", "targets", "k_start", "k_end")}
    batch |= {"positions": array(jnp.int32, 2), "loss_weights": array(jnp.float32)}
    if question.task == "pretrain":
        batch["objective"] = array(jnp.int32)
        loss_fn = blank_infilling_loss(config, compute)
    else:
        loss_fn = _finetune_loss(compute)
    step = trainer.make_train_step(loss_fn, tx, schedule=optimizer.schedule.fn())
    shares = {
        "parameters": _bytes(state.model),
        "optimizer": _bytes(state.opt_state),
        "batch": _bytes(batch),
        "gradients": _bytes(state.model),
    }
    tokens = question.rows * question.length
    flops = tokens * flops_per_token(config, question.length)
    return Program(step.lower(state, batch), shares, flops, tokens)


def _finetune_loss(compute: Compute) -> trainer.LossFn:
    return lambda model, batch, key: (lm_loss(model, batch, compute=compute)[0], {})


def _prefill(question: Question, mesh: Mesh) -> Program:
    """One piece of every prompt (``_read``); a model that reads both ways takes it whole."""
    config, rows = question.config, question.rows
    piece = question.length if config.prefix_lm else min(PREFILL_CHUNK, question.length)
    model, cache, array = _inference(question, mesh)
    tokens = array(jnp.int32, rows, piece)
    lowered = _read.lower(
        model, tokens, array(jnp.int32, rows, 2, piece), tokens, cache,
        array(jnp.bfloat16, rows, config.embed_dim), array(jnp.int32, rows),
        _whole(mesh, jnp.int32), compute=Compute(dtype="bfloat16"),
    )  # fmt: skip
    shares = {"parameters": _bytes(model), "cache": _bytes(cache)}
    flops = rows * piece * flops_per_token(config, question.length, backward=False)
    return Program(lowered, shares, flops, rows * piece, -(-question.length // piece))


def _decode(question: Question, mesh: Mesh) -> Program:
    """The loop that writes tokens (``write``); one pass of it is one token of every row."""
    config, rows = question.config, question.rows
    model, cache, array = _inference(question, mesh)
    ints = array(jnp.int32, rows)
    state = State(
        cache=cache,
        logits=array(jnp.float32, rows, config.vocab_size),
        next=Next(ints, ints, ints, ints, ints),
        tokens=array(jnp.int32, rows, question.length),
        made=ints,
        done=array(jnp.bool_, rows),
        seen=None,
    )
    sampling = jax.tree.map(lambda x: array(x.dtype, rows), RowSampling.make(rows))
    lowered = write.lower(
        model, state, sampling, _whole(mesh, jnp.int32, 8), ints, _whole(mesh, jnp.int32),
        compute=Compute(dtype="bfloat16"),
    )  # fmt: skip
    shares = {"parameters": _bytes(model), "cache": _bytes(cache)}
    flops = rows * flops_per_token(config, question.length, backward=False)
    return Program(lowered, shares, flops, rows)


def _inference(question: Question, mesh: Mesh):
    """Abstract model in bfloat16, abstract cache, and a maker of arrays cut over rows.

    The cache lies as ``glm_jax.sharding.RULES`` say: rows over data, kv heads over tensor.
    """
    config = question.config
    shapes = jax.eval_shape(lambda: GLM(config, jax.random.key(0), param_dtype=jnp.bfloat16))
    model = jax.tree.map(_placed, shapes, sharding.tree_shardings(shapes, mesh))
    empty = jax.eval_shape(
        lambda: KVCache.zeros(config, question.rows, question.length, jnp.bfloat16)
    )

    def place(x):
        axes = ("layers", "batch", "kv_heads", "slots", "head_dim")[: x.ndim]
        return _placed(x, NamedSharding(mesh, sharding.spec(axes, x.shape, mesh)))

    cut = sharding.batch_shardings(mesh)
    array = lambda kind, *shape: jax.ShapeDtypeStruct(shape, kind, sharding=cut)
    return model, jax.tree.map(place, empty), array


def _whole(mesh: Mesh, kind, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, PartitionSpec()))


def _placed(x: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _bytes(tree: Any) -> int:
    """Per device, without the padding of TPU tiles."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
