"""Floats as digits of eight bits, and products with integer weights by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from glm_jax.ops.digits import as_digits, from_digits
from glm_jax.ops.quantized import dequantize, quantize, to_int4, unpack_int4
from glm_jax.ops.quantized_linear import _by_digits, quantized_linear
from glm_jax.sharding import MeshConfig, make_mesh

ERROR = {1: 4e-3, 2: 2e-5, 3: 1.2e-7}


@pytest.mark.parametrize("count", ERROR)
def test_digits_are_the_number_but_for_what_they_cannot_hold(count):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 501)).astype(np.float32) * 10.0 ** rng.integers(-20, 20, (6, 1))
    x[1, :7] *= 1e4
    x[2], x[3, ::2] = 0, np.abs(x[3]).max()  # nothing, and the largest digits there are
    digits, unit = as_digits(x, count)
    assert digits.dtype == jnp.int8 and digits.shape == (6, count, 501)
    assert not np.asarray(digits[2]).any()
    back = from_digits(digits.astype(jnp.int32), unit)
    largest = np.abs(x).max(1, keepdims=True)
    assert (np.abs(back - x) <= ERROR[count] * largest).all()


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("form", ["int8", "packed", "int4"])
def test_the_product_is_that_of_the_dequantised_weight(form, pieces):
    """Of several output axes; one number is a thousand times the others'."""
    bits = 8 if form == "int8" else 4
    weight = jax.random.normal(jax.random.key(0), (3, 4, 32))
    x = jax.random.normal(jax.random.key(1), (5, 32)).at[0, 0].set(1000.0)
    q, scale = quantize(weight, bits)
    expected = np.einsum("RI,ONI->RON", *map(np.float64, (x, dequantize(q, scale, bits))))
    q = to_int4(q) if form == "int4" else q
    got = jax.jit(_by_digits, static_argnums=(3, 4))(x, q, scale[..., None], bits, pieces)
    largest = np.abs(expected).max(axis=(1, 2), keepdims=True)
    assert (np.abs(got - expected) / largest).max() < 3e-7


def test_int4_is_what_lies_two_to_a_byte():
    packed = np.random.default_rng(0).integers(-128, 128, (3, 5, 8)).astype(np.int8)
    native = jax.jit(to_int4)(packed)
    assert native.dtype == jnp.int4 and native.shape == (3, 5, 16)
    np.testing.assert_array_equal(np.int8(native), unpack_int4(jnp.asarray(packed)))


@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("rows", [2, 20])
def test_int4_and_packed_numbers_give_the_same(rows, group):
    q, scale = quantize(jax.random.normal(jax.random.key(0), (6, 16)), 4, group=group)
    x = jax.random.normal(jax.random.key(1), (rows, 16))
    ours, theirs = (quantized_linear(x, w, scale, bits=4, group=group) for w in (to_int4(q), q))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    with pytest.raises(ValueError, match=r"int4 weight contracts \(16,\)"):
        quantized_linear(x[:, :8], to_int4(q), scale, bits=4)


def test_a_cut_weight_is_multiplied_where_it_lies():
    """The sum of what the devices have is all that is sent: no maximum, and no weight."""
    mesh = make_mesh(MeshConfig(data=1, tensor=4), jax.devices()[:4])
    cut = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    q, scale = quantize(jax.random.normal(jax.random.key(0), (6, 64)), 8)
    x = jax.random.normal(jax.random.key(1), (2, 64))
    product = lambda x, q: _by_digits(x, q, scale[..., None], 8, 4)
    places = (cut(None, "tensor"),) * 2
    compiled = jax.jit(product, in_shardings=places, out_shardings=cut()).lower(x, q).compile()
    text = compiled.as_text()
    assert text.count(" all-reduce(") == 1 and "all-gather" not in text
    np.testing.assert_allclose(
        compiled(*jax.device_put((x, q), places)), x @ dequantize(q, scale, 8).T, atol=1e-4
    )
