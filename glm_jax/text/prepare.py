"""How this machine's backend decodes with a model: what is copied, and what it computes in."""

from __future__ import annotations

import os
from collections.abc import Iterable

import jax
from flax import nnx

from glm_jax.nn import GLM, Compute, arranged, is_arranged, packed_bytes, unstacked

# Tokens in which a TPU regains what it takes to make int4 of packed numbers: by the compiler, for
# ChatGLM2-6B on one v5e, 305 ms, and 7.4 ms of every token.
_REGAINED_AFTER = 41


def decode_compute(model: GLM, compute: Compute | None) -> Compute:
    """How to compute, unless it was said: the type of the weights, layers unrolled on CPU.

    XLA's CPU backend copies a layer's weights out of the stack at every step of a scan, which
    halves the speed of decoding; its TPU compiler does not. ``prepare`` does away with the stack.
    """
    if compute is not None:
        return compute
    unroll = model.config.num_layers if jax.default_backend() == "cpu" else 1
    return Compute(dtype=str(model.embedding.dtype), unroll=unroll)  # pyrefly: ignore


def prepare(model: GLM, steps: int | None = None) -> GLM:
    """The model as this backend decodes with it. Whoever generates again and again does this once,
    and need not keep what it gave (``glm_jax.Chat`` and the server do so themselves).

    >>> model = glm_jax.prepare(glm_jax.load("ckpt/chatglm3-6b", quantize="int4"))

    The result generates and scores; it cannot be saved, quantised or given an adapter.

    On a CPU it has a copy of its layers, unless the model is spread over devices; on a TPU copies
    of its output projections and of its 4-bit numbers (``nn.arranged``). Copies of layers and of
    4-bit numbers are made where free memory is twice what they need.

    Args:
      steps: tokens that are written before the result is given up; None: many.
    """
    backend = jax.default_backend()
    if backend == "tpu":
        if is_arranged(model):
            return model
        devices = model.embedding[...].sharding.addressable_devices
        worth_it = steps is None or steps > _REGAINED_AFTER
        return arranged(model, native=worth_it and _have_room(devices, 2 * packed_bytes(model)))
    if isinstance(model.layers, nnx.List):  # prepared already
        return model
    if backend != "cpu" or len(model.embedding[...].sharding.device_set) > 1:
        return model
    needed = sum(x.nbytes for x in jax.tree.leaves(model.layers))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return unstacked(model) if 2 * needed < free else model


def _have_room(devices: Iterable[jax.Device], size: int) -> bool:
    """Whether each has so many bytes left, or does not say what it has."""
    known = [stats for device in devices if (stats := device.memory_stats())]
    return all(size <= stats["bytes_limit"] - stats["bytes_in_use"] for stats in known)
