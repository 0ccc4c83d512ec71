"""Attention over key ranges as a Pallas kernel for TPUs.

``kernel`` wraps both passes (``forward``, ``backward``) as one differentiable function; ``tables``
says what each tile of queries reads, ``blocks`` how the work is cut.
"""

from glm_jax.ops.attention.tpu.chip import on_tpu, vmem, why_not

__all__ = ["on_tpu", "vmem", "why_not"]
