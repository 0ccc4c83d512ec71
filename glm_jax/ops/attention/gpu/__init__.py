"""Attention over key ranges as Pallas kernels for GPUs, compiled by Triton.

``kernel`` wraps both passes (``forward``, ``backward``) as one differentiable function; ``blocks``
says how the work is cut, and ``glm_jax.ops.attention.spans`` what each tile of queries reads.
"""

from glm_jax.ops.attention.gpu.taken import why_not

__all__ = ["why_not"]
