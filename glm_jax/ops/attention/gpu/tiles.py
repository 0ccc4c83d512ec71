"""What the kernels share: the walk over what a tile sees, and the arithmetic of a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.online import HIDDEN, to_base_2
from glm_jax.ops.attention.spans import Spans


class Statics(NamedTuple):
    """What is known when a kernel is built."""

    head_dim: int
    """Without what it is padded by."""
    dropout: float
    interpret: bool

    @property
    def scale(self) -> float:
        return to_base_2(self.head_dim)

    def weights(
        self, scores: Float[Array, "X Y"], less: Float[Array, "..."]
    ) -> Float[Array, "X Y"]:
        """``2 ** (scores * scale - less)``, with what is below float32's normal numbers as zero.

        Triton would make a product, a difference and a power that minds tiny numbers of it, seven
        instructions; in these kernels, whose arithmetic takes as long as their products, two do.
        """
        less = jnp.broadcast_to(less, scores.shape)
        if self.interpret:
            return jnp.exp2(scores * self.scale - less)
        from jax.experimental.pallas import triton  # JAX for Windows has none.

        scale = np.float32(self.scale).view(np.uint32)
        (weights,) = triton.elementwise_inline_asm(
            "{ .reg .f32 x; "
            f"fma.rn.ftz.f32 x, $1, 0f{scale:08X}, $2; "
            "ex2.approx.ftz.f32 $0, x; }",
            args=[scores, -less],
            constraints="=f,f,f",
            pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(scores.shape, jnp.float32)],
        )
        return weights


# step(unit, turn, carry, masked) -> carry
Step = Callable[[Array, Array | int, Any, bool], Any]


def walk(table: Spans, at: Array, step: Step, carry: Any, turns: int = 1) -> Any:
    """``step`` over the units that tile ``at`` sees, ``turns`` times: with a mask, without one
    where all is seen, and with one again.

    Args:
      table: references to its flat arrays.
    """
    marks = [ref[at] for ref in table]
    for low, high, masked in zip(marks, marks[1:], (True, False, True), strict=False):
        size = high - low

        def body(x, carry, low=low, size=size, masked=masked):
            if turns == 1:
                return step(low + x, 0, carry, masked)
            # One loop, so that loads are ahead of products from one turn to the next as well.
            return step(low + jax.lax.rem(x, size), jax.lax.div(x, size), carry, masked)

        carry = jax.lax.fori_loop(0, turns * size, body, carry)
    return carry


def whole(table: Spans) -> Any:
    """Every program may read all of it."""
    return jax.tree.map(lambda _: pl.BlockSpec(), table)


def dot(x: Float[Array, "X C"], y: Float[Array, "C Y"]) -> Float[Array, "X Y"]:
    """Summed in float32; float32 inputs are not rounded to TF32."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.dot(x, y, precision=precision, preferred_element_type=jnp.float32)


def hide(
    scores: Float[Array, "X Y"],
    starts: Int[Array, "..."],
    ends: Int[Array, "..."],
    keys: Int[Array, "..."],
) -> Float[Array, "X Y"]:
    """``HIDDEN`` where a query does not see a key; ranges and keys broadcast against scores."""
    return jnp.where((keys >= starts) & (keys < ends), scores, HIDDEN)


def numbers(unit: Array, size: int) -> Int[Array, " size"]:
    """Of the queries or keys of a unit."""
    return unit * size + jnp.arange(size, dtype=jnp.int32)
