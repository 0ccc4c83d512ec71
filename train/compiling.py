"""What XLA's TPU compiler is told about a training step beyond the program."""

from __future__ import annotations

import os

import jax

_LIMIT = "xla_tpu_scoped_vmem_limit_kib"
# MiB of fast memory that a fusion may use, where its estimate gains from more than libtpu's 16. On
# v6e it gains nothing; v4 has no more.
LARGE = {"TPU v5 lite": 32, "TPU v5e": 32, "TPU v5": 32, "TPU v5p": 32}


def compiler_options(*, large_fusions: bool) -> dict[str, str]:
    """``compiler_options`` of ``jax.jit`` for the chips of the active mesh; empty off TPUs.

    With more fast memory the tiles of a matrix product are larger, and its operands are read fewer
    times. A limit that is given in ``LIBTPU_INIT_ARGS`` is left alone.
    """
    size = LARGE.get(_device_kind()) if large_fusions else None
    if not size or _LIMIT in os.environ.get("LIBTPU_INIT_ARGS", ""):
        return {}
    return {_LIMIT: str(size * 1024)}


def _device_kind() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return device.device_kind
