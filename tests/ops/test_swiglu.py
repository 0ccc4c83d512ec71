"""The gated activation's written-out gradient is its own."""

import jax
import numpy as np

from glm_jax.ops.swiglu import swiglu


def test_value_and_gradients_are_those_of_its_definition():
    gate, up, d_out = jax.random.normal(jax.random.key(0), (3, 4, 33)) * 4
    plain, pull = jax.vjp(lambda gate, up: jax.nn.silu(gate) * up, gate, up)
    ours, our_pull = jax.vjp(swiglu, gate, up)
    np.testing.assert_array_equal(ours, plain)
    for mine, theirs in zip(our_pull(d_out), pull(d_out), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
