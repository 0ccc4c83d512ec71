"""Reading a prompt and writing tokens, lowered for devices that need not exist."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glm_jax import sharding
from glm_jax.config import flops_per_token
from glm_jax.nn import GLM, Compute, KVCache, arranged
from glm_jax.text.decoding_loop import PREFILL_CHUNK, Next, State, _read, write
from glm_jax.text.sampling import RowSampling
from train.planning.program import Program, device_bytes, placed
from train.planning.question import Question


def prefill(question: Question, mesh: Mesh) -> Program:
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
    shares = {"parameters": device_bytes(model), "cache": device_bytes(cache)}
    flops = rows * piece * flops_per_token(config, question.length, backward=False)
    return Program(lowered, shares, flops, rows * piece, -(-question.length // piece))


def decode(question: Question, mesh: Mesh) -> Program:
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
    shares = {"parameters": device_bytes(model), "cache": device_bytes(cache)}
    flops = rows * flops_per_token(config, question.length, backward=False)
    return Program(lowered, shares, flops, rows)


def _inference(question: Question, mesh: Mesh):
    """Abstract model in bfloat16, as ``prepare`` makes it for a TPU, abstract cache, and a maker of
    arrays cut over rows.

    The cache lies as ``glm_jax.sharding.RULES`` say: rows over data, kv heads over tensor.
    """
    config = question.config
    shapes = jax.eval_shape(
        lambda: arranged(GLM(config, jax.random.key(0), param_dtype=jnp.bfloat16))
    )
    model = jax.tree.map(placed, shapes, sharding.tree_shardings(shapes, mesh))
    empty = jax.eval_shape(
        lambda: KVCache.zeros(config, question.rows, question.length, jnp.bfloat16)
    )

    def place(x):
        axes = ("layers", "batch", "kv_heads", "slots", "head_dim")[: x.ndim]
        return placed(x, NamedSharding(mesh, sharding.spec(axes, x.shape, mesh)))

    cut = sharding.batch_shardings(mesh)
    array = lambda kind, *shape: jax.ShapeDtypeStruct(shape, kind, sharding=cut)
    return model, jax.tree.map(place, empty), array


def _whole(mesh: Mesh, kind, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, PartitionSpec()))
