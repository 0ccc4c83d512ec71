"""How this machine's backend decodes with a model: what is copied, and what it computes in."""

from __future__ import annotations

import os
from collections.abc import Iterable

import jax
from flax import nnx

from glm_jax.nn import GLM, Compute, arranged, is_arranged, packed_bytes, unstacked


def decode_compute(model: GLM, compute: Compute | None) -> Compute:
    """How to compute, unless it was said: the type of the weights, layers unrolled on CPU.

    XLA's CPU backend copies a layer's weights out of the stack at every step of a scan, which
    halves the speed of decoding; its TPU compiler does not. ``prepare`` does away with the stack.
    """
    if compute is not None:
        return compute
    unroll = model.config.num_layers if jax.default_backend() == "cpu" else 1
    return Compute(dtype=str(model.embedding.dtype), unroll=unroll)  # pyrefly: ignore


def prepare(model: GLM) -> GLM:
    """The model as this backend decodes with it; who decodes again and again (a chat, a server)
    keeps the result, and needs no longer keep what it gave.

    On a CPU it has a copy of its layers, unless the model is spread over devices; on a TPU copies
    of its output projections and of its 4-bit numbers (``nn.arranged``). Copies of layers and of
    4-bit numbers are made where free memory is twice what they need.
    """
    backend = jax.default_backend()
    if backend == "tpu":
        if is_arranged(model):
            return model
        devices = model.embedding[...].sharding.addressable_devices
        return arranged(model, native=_have_room(devices, 2 * packed_bytes(model)))
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
