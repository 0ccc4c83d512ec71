"""Attention over key ranges as a Pallas kernel for TPUs.

``kernel`` wraps both passes (``forward``, ``backward``) as one differentiable function; ``tables``
says what each tile of queries reads, ``blocks`` how the work is cut.
"""

from glm_jax.ops.attention.tpu.taken import why_not

__all__ = ["why_not"]
