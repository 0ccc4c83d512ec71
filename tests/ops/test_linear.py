"""Products of a few rows take other ways through XLA; the numbers and gradients are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from glm_jax.ops.linear import _two_rows_or_more, linear
from glm_jax.sharding import MeshConfig, make_mesh


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 48, 49])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_number_of_rows(rows, dtype):
    x = jax.random.normal(jax.random.key(0), (rows, 3, 8), dtype)
    weight = jax.random.normal(jax.random.key(1), (5, 2, 3, 8), dtype)
    bias = jax.random.normal(jax.random.key(2), (5, 2), dtype)
    exact = np.einsum("rij,opij->rop", *(np.asarray(a, np.float64) for a in (x, weight)))
    atol = 2e-5 if dtype == "float32" else 0.1
    found = jax.jit(lambda *a: linear(*a, inputs=2))(x, weight, bias)
    assert found.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(
        np.asarray(found, np.float64), exact + np.asarray(bias, np.float64), atol=atol
    )


@pytest.mark.parametrize("rows", [1, 2])
def test_a_single_row_goes_through_the_matrix_unit_of_a_tpu(rows):
    x = jax.random.normal(jax.random.key(0), (rows, 8))
    weight = jax.random.normal(jax.random.key(1), (5, 2, 8))
    found = jax.jit(_two_rows_or_more)(x, weight)
    np.testing.assert_allclose(found, jnp.einsum("ri,opi->rop", x, weight), atol=2e-5)


def test_rows_that_are_spread_one_to_a_device_are_not_alone_there():
    x = jax.random.normal(jax.random.key(0), (8, 16))
    weight = jax.random.normal(jax.random.key(1), (5, 2, 16))
    mesh = make_mesh(MeshConfig(data=8))
    with jax.set_mesh(mesh):
        own = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        run = jax.jit(_two_rows_or_more)
        found = run(own, weight)
        program = run.lower(own, weight).compile().as_text()
    np.testing.assert_allclose(found, jnp.einsum("ri,opi->rop", x, weight), atol=2e-5)
    assert "f32[2,16]" in program and "all-" not in program, "two rows each, and nothing is sent"


@pytest.mark.parametrize("rows", [1, 4])
def test_gradients_of_few_rows(rows):
    x = jax.random.normal(jax.random.key(0), (rows, 8))
    weight = jax.random.normal(jax.random.key(1), (5, 8))
    loss = lambda x, weight: jnp.sum(jnp.sin(linear(x, weight)))
    plain = lambda x, weight: jnp.sum(jnp.sin(x @ weight.T))
    for found, expected in zip(
        jax.jit(jax.grad(loss, (0, 1)))(x, weight), jax.grad(plain, (0, 1))(x, weight), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_columns_that_differ():
    with pytest.raises(ValueError, match=r"contracts \(8,\), but the input .* ends in \(7,\)"):
        linear(jnp.zeros((2, 7)), jnp.zeros((5, 8)))
