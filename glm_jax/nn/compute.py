"""How to compute a network, as opposed to what it is."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from glm_jax.ops.attention import Implementation

Remat = Literal["none", "full", "minimal", "attention"]


@dataclasses.dataclass(frozen=True)
class Compute:
    """Choices that change speed and memory but not the model. Hashable: a static jit argument."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of activations and of the weights' copies in matrix products; norms, softmax and loss
    are float32 always."""
    cache_dtype: Literal["same", "int8"] = "same"
    """Type of kept keys and values; ``int8`` has a scale per token and head and half the size of
    bfloat16."""
    remat: Remat = "none"
    """What the backward pass recomputes: ``none``; ``full`` keeps only each layer's input;
    ``attention`` keeps the attention output as well; ``minimal`` keeps every matrix product but
    those of the attention scores."""
    attention: Implementation = "auto"
    unroll: int = 1
    """Layers per step of the scan over layers; the number of layers unrolls it wholly."""
    loss_chunk: int = 1024
    """Tokens of a device whose logits exist at one time in the loss."""

    @property
    def cache_type(self) -> jnp.dtype:
        """What to give to ``GLM.new_cache``."""
        return jnp.dtype(self.dtype if self.cache_dtype == "same" else self.cache_dtype)

    def checkpoint(self, body):
        """``body`` under this rematerialisation policy.

        Raises:
          ValueError: an unknown policy.
        """
        policies = jax.checkpoint_policies
        if self.remat == "none":
            return body
        known = {
            "full": policies.nothing_saveable,
            "minimal": policies.save_only_these_names("product"),
            "attention": policies.save_only_these_names("attention_out"),
        }
        if self.remat not in known:
            raise ValueError(f"remat is {self.remat!r}; choose none, {', '.join(known)}")
        # Inside a scan nothing can be merged across steps, so the guard against it only costs.
        return jax.checkpoint(body, policy=known[self.remat], prevent_cse=False)
