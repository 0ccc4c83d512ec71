"""The mesh, and the one table from logical axes to mesh axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

MESH_AXES = ("data", "fsdp", "tensor", "context")

# Logical axis -> mesh axes, in order of preference. What is not here is replicated. An axis whose
# size a mesh axis does not divide (two kv heads over four chips) is replicated there as well.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "vocab": ("tensor",),
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1: whatever the devices leave over."""

    data: int = -1
    """Replicas that each see their own part of the batch."""
    fsdp: int = 1
    """The same, with parameters and optimizer state cut over them too."""
    tensor: int = 1
    """Heads, MLP width and vocabulary cut over these."""
    context: int = 1
    """The sequence cut over these, and parameters and optimizer state like fsdp."""

    def sizes(self, devices: int) -> tuple[int, ...]:
        """The four sizes for this many devices.

        Raises:
          ValueError: they do not multiply to it.
        """
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        shown = ", ".join(f"{a}={s}" for a, s in zip(MESH_AXES, sizes, strict=True))
        if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
            raise ValueError(f"mesh {shown}: sizes are positive, and at most one is -1")
        known = math.prod(s for s in sizes if s != -1)
        if devices % known or (-1 not in sizes and known != devices):
            raise ValueError(
                f"mesh {shown} needs a multiple of {known} devices; there are {devices}"
            )
        return tuple(devices // known if s == -1 else s for s in sizes)


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over these devices (all of them by default); activate it with ``jax.set_mesh``."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = config.sizes(len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(sizes, MESH_AXES, axis_types=types, devices=devices)


def ways(axis: str) -> int:
    """Over how many devices of the current mesh a logical axis is cut; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape.get(a, 1) for a in RULES.get(axis, ()))


def spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """How an array with these logical axes lies on a mesh (or abstract mesh)."""
    taken: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        chosen: list[str] = []
        for name in RULES.get(axis or "", ()):
            ways = mesh.shape.get(name, 1)
            held = math.prod(mesh.shape[c] for c in chosen)
            if ways > 1 and name not in taken and size % (held * ways) == 0:
                chosen.append(name)
                taken.add(name)
        entries.append(tuple(chosen) or None)
    return PartitionSpec(*entries)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf of a model, an optimizer state or a whole train state.

    Leaves under an ``nnx.Variable`` follow its ``axes``; all others are replicated. Takes arrays
    or ``jax.ShapeDtypeStruct`` and returns the same structure.
    """

    def of(node: Any) -> Any:
        if not isinstance(node, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        leaves, structure = jax.tree.flatten(node)
        axes = node.get_metadata().get("axes")
        named = [
            NamedSharding(mesh, spec(axes, x.shape, mesh) if axes else PartitionSpec())
            for x in leaves
        ]
        return jax.tree.unflatten(structure, named)

    return jax.tree.map(of, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def batch_shardings(mesh: Mesh) -> NamedSharding:
    """Of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a global batch that the devices of this process hold, ascending.

    Two processes hold the same rows where the mesh cuts something else than the batch over them.
    """
    held = batch_shardings(mesh).addressable_devices_indices_map((batch_size,))
    parts = [index[0].indices(batch_size) for index in held.values() if index]
    return sorted({row for part in parts for row in range(*part)})


def constrain(x: Array, *axes: str | None) -> Array:
    """Asks the compiler to lay ``x`` out by these logical axes; the identity without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh))
