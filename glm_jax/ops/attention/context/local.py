"""One device's attention, whole or by pieces of the keys, in any of the implementations."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from glm_jax.ops.attention.chunked import chunked_attention, chunked_backward, chunked_forward
from glm_jax.ops.attention.gpu import blocks as gpu_blocks
from glm_jax.ops.attention.gpu import kernel as gpu_kernel
from glm_jax.ops.attention.online import EMPTY, HIDDEN
from glm_jax.ops.attention.reference import reference_attention, reference_forward
from glm_jax.ops.attention.tpu import blocks as tpu_blocks
from glm_jax.ops.attention.tpu import kernel as tpu_kernel
from glm_jax.ops.dropout import Drops

_KERNELS: dict[str, Any] = {"tpu": tpu_kernel, "gpu": gpu_kernel}


@dataclasses.dataclass(frozen=True)
class LocalAttention:
    """Attention of the queries and keys at hand; hashable, so it can be static."""

    implementation: Literal["reference", "chunked", "tpu", "gpu"]
    memory: int = 0
    """Bytes of fast memory, for the kernels: see ``chip.fast_memory``."""
    dropout: float = 0.0
    """Rate, where it is called with words."""
    interpret: bool = False
    """Run the kernels on any device, slowly, for tests."""

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        k_start: Int[Array, "B T"],
        k_end: Int[Array, "B T"],
        words: Int[Array, "B T N"] | None = None,
    ) -> Float[Array, "B T N H"]:
        """See ``glm_jax.ops.attention.attention``; differentiable.

        Args:
          words: of ``Dropout.words``; None: nothing is dropped.
        """
        if kernel := _KERNELS.get(self.implementation):
            return kernel.range_attention(self._plan(q, k), q, k, v, k_start, k_end, words)
        attend = reference_attention if self.implementation == "reference" else chunked_attention
        drops = None if words is None else Drops(self.dropout, words)
        return attend(q, k, v, k_start, k_end, drops=drops)

    def forward(
        self, q: Array, k: Array, v: Array, k_start: Array, k_end: Array
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
        """Output over these keys alone and natural log-sum-exp of their scores, ``HIDDEN`` where a
        query sees none of them. Arguments as ``__call__``; not differentiable."""
        if kernel := _KERNELS.get(self.implementation):
            out, saved = kernel.range_forward(self._plan(q, k), q, k, v, k_start, k_end, None)
            lse = saved[-1] * math.log(2)
        else:
            whole = self.implementation == "reference"
            attend = reference_forward if whole else chunked_forward
            out, lse = attend(q, k, v, k_start, k_end)
        return out, jnp.where(lse > EMPTY / 2, HIDDEN, lse)

    def backward(
        self,
        q: Array,
        k: Array,
        v: Array,
        k_start: Array,
        k_end: Array,
        out: Float[Array, "B T N H"],
        lse: Float[Array, "B T N"],
        d_out: Float[Array, "B T N H"],
    ) -> tuple[Array, Array, Array]:
        """What these keys add to dq, and their dk and dv, float32.

        Args:
          out: over all keys, of which these may be a part.
          lse: the same, natural; ``EMPTY`` where a query sees none at all.
        """
        if kernel := _KERNELS.get(self.implementation):
            saved = q, k, v, k_start, k_end, None, out, lse * math.log2(math.e)
            grads = kernel.range_backward(self._plan(q, k), saved, d_out)[:3]
        else:
            whole = self.implementation == "reference"
            sizes = {"q_block": q.shape[1], "k_block": k.shape[1]} if whole else {}
            grads = chunked_backward(q, k, v, k_start, k_end, out, lse, d_out, **sizes)
        dq, dk, dv = (x.astype(jnp.float32) for x in grads)
        return dq, dk, dv

    def _plan(self, q: Array, k: Array) -> tpu_kernel.Plan | gpu_kernel.Plan:
        if self.implementation == "gpu":
            cut = gpu_blocks.choose(
                q.shape[1], k.shape[1], q.shape[3], q.dtype.itemsize, self.memory
            )
            return gpu_kernel.Plan(cut, self.dropout, self.interpret)
        problem = tpu_blocks.Problem(
            batch=q.shape[0],
            queries=q.shape[1],
            keys=k.shape[1],
            kv_heads=k.shape[2],
            groups=q.shape[2] // k.shape[2],
            head_dim=q.shape[3],
            itemsize=q.dtype.itemsize,
            vmem=self.memory,
        )
        return tpu_kernel.Plan(*tpu_blocks.choose(problem), self.dropout, self.interpret)
