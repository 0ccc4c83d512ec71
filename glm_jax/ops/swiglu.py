"""The gated activation, with its gradient written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def swiglu(gate: Float[Array, "..."], up: Float[Array, "..."]) -> Float[Array, "..."]:
    """``silu(gate) * up`` (arXiv 2002.05202).

    Under differentiation only ``gate`` and ``up`` are kept, and its value and both gradients are
    arrays of their own: left to itself, XLA on TPUs computes them inside each of the products that
    take them, once for every tile of the result.
    """
    return jax.nn.silu(gate) * up


def _forward(gate, up):
    return jax.lax.optimization_barrier(swiglu(gate, up)), (gate, up)


def _backward(saved, d_out):
    gate, up, d_out = (x.astype(jnp.float32) for x in (*saved, d_out))
    share = jax.nn.sigmoid(gate)
    d_gate = d_out * up * share * (1 + gate * (1 - share))
    d_up = d_out * gate * share
    return jax.lax.optimization_barrier(tuple(x.astype(saved[0].dtype) for x in (d_gate, d_up)))


swiglu.defvjp(_forward, _backward)
