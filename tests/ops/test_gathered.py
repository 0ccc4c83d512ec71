"""Products with weights that are cut over the devices which cut the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from glm_jax.ops import gathered
from glm_jax.ops.linear import linear
from glm_jax.sharding import MeshConfig, make_mesh, spec

# (logical axes, shape, contracted axes) of each side that can be cut.
WEIGHTS = [
    (("mlp", "embed"), (24, 32), 1),
    (("embed", "heads", "head_dim"), (32, 4, 6), 2),
    (("heads", "head_dim", "embed"), (4, 6, 32), 1),
]


def arrays():
    keys = iter(jax.random.split(jax.random.key(0), 2 * len(WEIGHTS)))
    for _, shape, inputs in WEIGHTS:
        x = jax.random.normal(next(keys), (8, 8, *shape[len(shape) - inputs :]))
        yield x, jax.random.normal(next(keys), shape)


def total(product, pairs):
    """Every row counts differently, so that a gradient summed over the wrong ones shows."""
    rows = jnp.arange(1.0, 9.0)
    parts = [
        jnp.einsum("B,T,BT...->", rows, rows, jnp.sin(product(i, *pair)))
        for i, pair in enumerate(pairs)
    ]
    return sum(parts)


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "fsdp": 4},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"data": 1, "fsdp": 2, "context": 4},
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_one_device(sizes):
    pairs = list(arrays())
    plain = lambda i, x, w: linear(x, w, inputs=WEIGHTS[i][2])
    wanted = jax.value_and_grad(lambda p: total(plain, p))(pairs)
    mesh = make_mesh(MeshConfig(**sizes))
    with jax.set_mesh(mesh):
        cuts = [gathered.cut_of(axes, shape) for axes, shape, _ in WEIGHTS]
        held = [
            (x, jax.device_put(w, NamedSharding(mesh, spec(axes, w.shape, mesh))))
            for (x, w), (axes, _, _) in zip(pairs, WEIGHTS, strict=True)
        ]

        def product(i, x, w):
            assert gathered.takes(x, w, cuts[i], WEIGHTS[i][2])
            return gathered.linear(x, w, cuts[i], WEIGHTS[i][2])

        found = jax.jit(jax.value_and_grad(lambda p: total(product, p)))(held)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-4)
    for (x, gradient), (_, shape, _), cut in zip(found[1], WEIGHTS, cuts, strict=True):
        ways = sizes["fsdp"] * sizes.get("context", 1)
        held = gradient.sharding.shard_shape(shape)[cut.dim]
        assert held * ways == shape[cut.dim]  # no device holds all of it
        assert x.sharding.shard_shape(x.shape)[0] < len(x)


def test_a_torus_of_three_dimensions_is_gathered_along_one_and_then_the_others(monkeypatch):
    monkeypatch.setattr(gathered, "_three_dimensional", lambda: True)
    monkeypatch.setattr(gathered, "_WOUND", 8)
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    x = jnp.arange(16.0).reshape(16, 1)
    with jax.set_mesh(mesh):
        assert [len(groups[0]) for _, groups in gathered._stages(("fsdp",))] == [2, 4]
        cut = gathered.Cut(0, ("fsdp",))

        def both(x):
            whole = gathered.gather(x, cut.over)
            return whole, gathered.summed(whole, cut.over)

        specs = cut.spec(2), (jax.sharding.PartitionSpec(), cut.spec(2))
        whole, summed = jax.jit(gathered.by_rows(both, *specs))(x)
    np.testing.assert_array_equal(whole, x)
    np.testing.assert_array_equal(summed, 8 * x)


def test_what_cuts_no_rows_is_left_to_the_compiler():
    assert gathered.cut_of(("mlp", "embed"), (24, 32)) is None  # no mesh
    with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))):
        cut = gathered.cut_of(("heads", "embed"), (8, 32))
        assert cut == gathered.Cut(1, ("fsdp",))
        assert gathered.cut_of(("heads", "head_dim"), (8, 32)) is None
        three_rows = jnp.zeros((3, 8, 32))
        assert not gathered.takes(three_rows, jnp.zeros((8, 32)), cut, 1)
