"""Products with weights that are cut over the devices which also cut the rows (FSDP).

Each device has its own rows and a slice of the weight, gathers the weight for its product, and adds
up the gradients of all rows for its slice. XLA's partitioner finds that plan too, but on a
three-dimensional torus (v4, v5p) its compiler has a gather over the whole slice done by adding up
padded copies, which sends twice the bytes and writes every weight one more time. So the
collectives are written out here, one dimension of the torus after another where they must be.

The backward pass gathers the weight again, so no gathered copy outlives its product.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from glm_jax.sharding import RULES, spec

_ROWS = "batch", "length"
# Chips from which on a slice of a three-dimensional torus is wound around in each of them.
_WOUND = 64


class Cut(NamedTuple):
    """Which axis of an array is cut, and over which mesh axes."""

    dim: int
    over: tuple[str, ...]

    def spec(self, ndim: int) -> PartitionSpec:
        return PartitionSpec(*(self.over if i == self.dim else None for i in range(ndim)))


def cut_of(axes: Sequence[str | None], shape: Sequence[int]) -> Cut | None:
    """How the rows' mesh axes cut an array with these logical axes; None where they do not."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return None
    mine = {name for axis in _ROWS for name in RULES[axis]}
    for dim, entry in enumerate(spec(axes, shape, mesh)):
        names = (entry,) if isinstance(entry, str) else entry or ()
        if names and mine.issuperset(names):
            return Cut(dim, tuple(names))
    return None


def rows_spec(shape: Sequence[int]) -> PartitionSpec | None:
    """Of an array [B, T, ...], over the mesh axes that cut rows; None where they do not divide."""
    mesh, entries = jax.sharding.get_abstract_mesh(), []
    for axis, size in zip(_ROWS, shape, strict=False):
        names = tuple(name for name in RULES[axis] if mesh.shape.get(name, 1) > 1)
        if size % math.prod(mesh.shape[name] for name in names):
            return None
        entries.append(names or None)
    return PartitionSpec(*entries)


def by_rows(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """``jax.shard_map`` over the axes that cut rows; other axes stay the compiler's."""
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=manual(), check_vma=False
    )


def manual() -> frozenset[str]:
    """The axes of the current mesh that may cut rows, and do cut something."""
    mesh = jax.sharding.get_abstract_mesh()
    mine = (name for axis in _ROWS for name in RULES[axis])
    return frozenset(name for name in mine if mesh.shape.get(name, 1) > 1)


def gather(x: Float[Array, "E *R"], over: tuple[str, ...]) -> Float[Array, "all *R"]:
    """In a shard: all slices of the first axis, in order."""
    for name, groups in _stages(over):
        whole = jax.lax.all_gather(x, name, axis_index_groups=groups)
        x = whole.reshape(-1, *x.shape[1:])
    return x


def summed(x: Float[Array, "all *R"], over: tuple[str, ...]) -> Float[Array, "E *R"]:
    """In a shard: the sum over all rows, of which each shard gets its slice of the first axis."""
    for name, groups in reversed(list(_stages(over))):
        ways = len(groups[0]) if groups else jax.lax.axis_size(name)
        # With the slices as an axis of their own: the compiler then pads no slice.
        x = jax.lax.psum_scatter(x.reshape(ways, -1, *x.shape[1:]), name, axis_index_groups=groups)
    others = tuple(sorted(manual() - set(over)))
    return jax.lax.psum(x, others) if others else x


def _stages(over: tuple[str, ...]) -> Iterator[tuple[str, list[list[int]] | None]]:
    """One gather after another, those of neighbouring slices first."""
    mesh = jax.sharding.get_abstract_mesh()
    for name in reversed(over):
        size = mesh.shape[name]
        if size == 1:
            continue
        if size < _WOUND or not _three_dimensional():
            yield name, None
            continue
        # The last dimension of the torus, along which jax.make_mesh counts first: 4 of 4x4x4, 8 of
        # 4x4x8 to 8x8x8, 16 of 8x8x16 and more.
        inner = 2 ** math.ceil(math.log2(size) / 3)
        if size % inner:
            yield name, None
            continue
        yield name, [[o + i for i in range(inner)] for o in range(0, size, inner)]
        yield name, [list(range(i, size, inner)) for i in range(inner)]


def _three_dimensional() -> bool:
    """Whether the mesh is of chips whose slices are tori of three dimensions."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.device_kind in ("TPU v4", "TPU v5", "TPU v5p", "TPU7x")


def takes(x: Array, weight: Array, cut: Cut, inputs: int) -> bool:
    """Whether ``linear`` can be called so: rows that divide, the cut axis alone on its side."""
    side = inputs if cut.dim >= weight.ndim - inputs else weight.ndim - inputs
    return side == 1 and x.ndim == 2 + inputs and rows_spec(x.shape) is not None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def linear(
    x: Float[Array, "B T ..."], weight: Float[Array, "..."], cut: Cut, inputs: int
) -> Float[Array, "B T ..."]:
    """``glm_jax.ops.linear.linear`` of a weight that is cut; ``x`` decides the type.

    Args:
      cut: of the weight.
      inputs: how many trailing axes are contracted.
    """
    return _forward(x, weight, cut, inputs)[0]


def _forward(x, weight, cut, inputs):
    rows = rows_spec(x.shape)

    def shard(x, weight):
        flat, is_input = _flat(weight.astype(x.dtype), cut, inputs)
        whole = gather(flat, cut.over)
        y = jnp.tensordot(_merged(x, inputs), whole, ((2,), (0 if is_input else 1,)))
        return y.reshape(*x.shape[:2], *_outputs(weight.shape, cut, inputs, whole.shape[0]))

    y = by_rows(shard, (rows, cut.spec(weight.ndim)), rows)(x, weight)
    return y, (x, weight)


def _backward(cut, inputs, saved, d_y):
    x, weight = saved
    rows = rows_spec(x.shape)

    def shard(x, weight, d_y):
        flat, is_input = _flat(weight.astype(x.dtype), cut, inputs)
        whole = gather(flat, cut.over)
        rows_x, rows_y = _merged(x, inputs), _merged(d_y, weight.ndim - inputs)
        d_x = jnp.tensordot(rows_y, whole, ((2,), (1 if is_input else 0,))).reshape(x.shape)
        left, right = (rows_x, rows_y) if is_input else (rows_y, rows_x)
        d_whole = jnp.tensordot(left, right, ((0, 1), (0, 1)))
        d_flat = summed(d_whole, cut.over)
        front = weight.shape[cut.dim : cut.dim + 1]
        rest = weight.shape[: cut.dim] + weight.shape[cut.dim + 1 :]
        d_weight = jnp.moveaxis(d_flat.reshape(*front, *rest), 0, cut.dim)
        return d_x, d_weight.astype(weight.dtype)

    cut_spec = cut.spec(weight.ndim)
    return by_rows(shard, (rows, cut_spec, rows), (rows, cut_spec))(x, weight, d_y)


linear.defvjp(_forward, _backward)


def _flat(weight: Array, cut: Cut, inputs: int) -> tuple[Float[Array, "E R"], bool]:
    """The weight with its cut axis first and the others as one, and whether that axis is an input.

    It is the only one of its side.
    """
    is_input = cut.dim >= weight.ndim - inputs
    return jnp.moveaxis(weight, cut.dim, 0).reshape(weight.shape[cut.dim], -1), is_input


def _merged(x: Array, trailing: int) -> Float[Array, "B T N"]:
    return x.reshape(*x.shape[: x.ndim - trailing], -1)


def _outputs(shape: tuple[int, ...], cut: Cut, inputs: int, whole: int) -> tuple[int, ...]:
    """The output axes of a weight whose slice has this shape."""
    outer = shape[: len(shape) - inputs]
    return tuple(whole if i == cut.dim else n for i, n in enumerate(outer))
