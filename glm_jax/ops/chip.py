"""Which TPU a program is for, where its mesh (or else the default backend) says so."""

from __future__ import annotations

import jax
from jax.experimental.pallas import tpu as pltpu

# What every chip since v4 has: for programs compiled elsewhere that do not say for which chip.
SMALLEST_VMEM = 16 * 2**20


def on_tpu() -> bool:
    """Whether the mesh (or else the default backend) is of TPUs."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device.platform if device else jax.default_backend()) == "tpu"


def vmem() -> int:
    """Bytes of fast memory of one core."""
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


def _info() -> pltpu.TpuInfo | None:
    """What is known of the chip; None where none is named."""
    try:
        return pltpu.get_tpu_info()
    except ValueError:
        return None
