"""Which chip a program is for, where its mesh (or else the default backend) says so."""

from __future__ import annotations

import re

import jax
from jax.experimental.pallas import tpu as pltpu

# What every TPU since v4 has: for programs compiled elsewhere that do not say for which chip.
SMALLEST_VMEM = 16 * 2**20
# What a program may have of shared memory on every NVIDIA GPU since Ampere, and on Hopper's and
# Blackwell's of the data centre (H20, H100, H200, H800, GH200, B200, GB300, ...).
SMALLEST_SHARED, LARGEST_SHARED = 99 * 2**10, 227 * 2**10
_LARGE_SHARED = re.compile(r"\b(G?H\d{2,3}|G?B\d{3})\b")
# Those that Triton does not compile for.
_BEFORE_AMPERE = re.compile(
    r"\b([PV]100\w*|P4|P6|P40|T\d{1,4}|K\d+m?|M\d+|MX\d+|\d{3}MX|CMP|GTX|TITAN|RTX 20[678]0"
    r"|Quadro)\b"
)


def on_tpu() -> bool:
    """Whether the mesh (or else the default backend) is of TPUs."""
    return _device()[0] == "tpu"


def on_nvidia() -> bool:
    """Whether it is of NVIDIA's GPUs that Triton compiles for."""
    platform, kind = _device()
    if platform not in ("gpu", "cuda") or "NVIDIA" not in kind:
        return False
    here = _default_device()
    capability = getattr(here, "compute_capability", "") if here.device_kind == kind else ""
    return float(capability) >= 8 if capability else not _BEFORE_AMPERE.search(kind)


def fast_memory() -> int:
    """Bytes of what kernels compute in: a TPU core's vector memory, or what one program may have of
    a GPU's shared memory."""
    platform, kind = _device()
    if platform in ("gpu", "cuda"):
        return LARGEST_SHARED if _LARGE_SHARED.search(kind) else SMALLEST_SHARED
    chip = _info()
    return chip.vmem_capacity_bytes if chip else SMALLEST_VMEM


def prefers_int8() -> bool:
    """Whether a weight of integers is better multiplied with integers than turned into bfloat16.

    So it is on v5e and v5p, whose matrix unit takes integers of eight bits and whose vector unit
    knows no bfloat16. A v6e makes floats as fast as it reads integers; the matrix units of v4 and
    TPU7x take none.
    """
    chip = _info()
    return chip is not None and chip.int8_ops_per_second > 0 and chip.generation == 5


def _device() -> tuple[str, str]:
    """Platform and kind."""
    named = jax.sharding.get_abstract_mesh().abstract_device
    if named:
        return named.platform, named.device_kind
    here = _default_device()
    return here.platform, here.device_kind


def _default_device() -> jax.Device:
    chosen = jax.config.jax_default_device  # pyrefly: ignore
    return chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]


def _info() -> pltpu.TpuInfo | None:
    """What is known of the TPU; None where none is named."""
    try:
        return pltpu.get_tpu_info()
    except ValueError:
        return None
