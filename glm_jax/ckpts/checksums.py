"""Checksums of arrays that do not depend on how the arrays are sharded.

Orbax notices a file that is cut short, but not a flipped bit in one of full length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from glm_jax.ckpts.trees import flat_paths


def checksum(x: Array | np.ndarray) -> UInt32[Array, ""]:
    """The array's words summed modulo 2**32: neither order nor mesh matter."""
    if isinstance(x, np.ndarray):  # stays on the host
        words = np.ascontiguousarray(x).reshape(-1).view(f"u{min(x.dtype.itemsize, 4)}")
        return jnp.asarray(words.sum(dtype=np.uint32))
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    words = x if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, unsigned)
    return words.astype(jnp.uint32).sum(dtype=jnp.uint32)


@jax.jit
def _on_device(arrays: dict[str, Array]) -> dict[str, UInt32[Array, ""]]:
    return {name: checksum(x) for name, x in arrays.items()}


def checksums(plain: Mapping[str, Any]) -> dict[str, UInt32[Array, ""]]:
    """``{"layers.mlp.up_proj.weight": checksum}`` of a nested dict of arrays."""
    flat = flat_paths(plain)
    on_host = {name: x for name, x in flat.items() if isinstance(x, np.ndarray)}
    # One program, not one per array: XLA's CPU backend has few threads for collectives.
    sums = _on_device({name: x for name, x in flat.items() if name not in on_host})
    return sums | {name: checksum(x) for name, x in on_host.items()}


def damaged(plain: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The names whose arrays do not have the expected checksum."""
    found = jax.device_get(checksums(plain))
    return [name for name, value in expected.items() if int(found[name]) != int(value)]
