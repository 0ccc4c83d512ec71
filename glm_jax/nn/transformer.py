"""The whole network, from token ids to logits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from glm_jax.config import GLMConfig
from glm_jax.nn import params
from glm_jax.nn.attention import Keys, Memory
from glm_jax.nn.block import Block, dropout
from glm_jax.nn.cache import KVCache
from glm_jax.nn.compute import Compute
from glm_jax.nn.norms import Norm
from glm_jax.nn.positions import LearnedPositions, Rope
from glm_jax.ops.linear import linear
from glm_jax.sharding import constrain


class Trace(NamedTuple):
    """What flows between the parts: for parity tests and for looking inside."""

    embedding: Float[Array, "B T D"]
    layers: Float[Array, "L B T D"]
    final_norm: Float[Array, "B T D"]


class GLM(nnx.Module):
    """Any model of the family. A pytree of ``nnx.Param``; layers are stacked on a leading axis.

    >>> model = GLM(config, jax.random.key(0))
    >>> logits = jax.jit(GLM.__call__)(model, tokens, positions, k_start, k_end)
    """

    def __init__(self, config: GLMConfig, key: Array, *, param_dtype=jnp.float32):
        keys = jax.random.split(key, 4)
        table = (config.vocab_size, config.embed_dim), ("vocab", "embed")
        self.config = config
        self.embedding = params.normal(keys[0], *table, config.init_std, param_dtype)
        self.positions = (
            LearnedPositions(config, keys[1], param_dtype) if config.position == "learned" else None
        )
        self.layers = params.stack(
            lambda k: Block(config, k, param_dtype), config.num_layers, keys[2]
        )
        self.final_norm = Norm(config, param_dtype)
        self.head = (
            None
            if config.tied_head
            else params.normal(keys[3], *table, config.init_std, param_dtype)
        )

    @property
    def head_weight(self) -> Float[Array, "V D"]:
        return (self.embedding if self.head is None else self.head)[...]

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B 2 T"],
        k_start: Int[Array, "B T"],
        k_end: Int[Array, "B T"],
        *,
        compute: Compute = Compute(),
        dropout_key: Array | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits in float32 for every position."""
        keys = Keys(k_start, k_end)
        x = self.hidden(tokens, positions, keys, compute=compute, dropout_key=dropout_key)
        return self.logits(x)

    def decode(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B 2 T"],
        k_start: Int[Array, "B T"],
        k_end: Int[Array, "B T"],
        cache: KVCache,
        slots: Int[Array, " B"],
        *,
        compute: Compute = Compute(),
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Final hidden states of T more tokens per row, and the cache with their keys in it.

        The first call of a row is its prefill; key ranges count cache slots, so they cover what
        was written before and what this call writes.

        Args:
          slots: first slot of each row's tokens.
        """
        x = self.embed(tokens, positions, compute.dtype)
        keys = Keys(k_start, k_end)
        x, written, _ = self._run_layers(x, positions, keys, compute, cached=(cache, slots))
        assert written is not None
        return self.final_norm(x), written

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B 2 T"],
        keys: Keys,
        *,
        compute: Compute = Compute(),
        dropout_key: Array | None = None,
        embed_grad_scale: float = 1.0,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, in the compute dtype."""
        embed_key, layer_key = (
            (None, None) if dropout_key is None else jax.random.split(dropout_key)
        )
        x = self.embed(tokens, positions, compute.dtype, embed_grad_scale)
        x = dropout(x, self.config.embed_dropout, embed_key)
        x, _, _ = self._run_layers(x, positions, keys, compute, layer_key)
        return self.final_norm(x)

    def trace(self, tokens, positions, k_start, k_end, *, compute: Compute = Compute()) -> Trace:
        """Every intermediate state of a forward pass; arguments as ``__call__``."""
        embedded = self.embed(tokens, positions, compute.dtype)
        keys = Keys(k_start, k_end)
        x, _, layers = self._run_layers(embedded, positions, keys, compute, collect=True)
        return Trace(embedded, layers, self.final_norm(x))

    def embed(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B 2 T"], dtype, grad_scale=1.0
    ) -> Float[Array, "B T D"]:
        """Word embeddings, plus learned positions where the model has them.

        ``grad_scale`` multiplies the gradient that reaches the table here, not the value
        (GLM-130B paper, section 3.1, "embedding layer gradient shrink").
        """
        x = self.embedding[...][tokens].astype(dtype)
        if grad_scale != 1.0:
            x = x * grad_scale + jax.lax.stop_gradient(x) * (1 - grad_scale)
        if self.positions is not None:
            x = x + self.positions(positions, dtype)
        return constrain(x, "batch", "length", "embed_activation")

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores of every token, float32."""
        scores = linear(hidden, self.head_weight.astype(hidden.dtype))
        return constrain(scores.astype(jnp.float32), "batch", "length", "vocab")

    def _run_layers(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B 2 T"],
        keys: Keys,
        compute: Compute,
        dropout_key: Array | None = None,
        *,
        cached: tuple[KVCache, Int[Array, " B"]] | None = None,
        collect: bool = False,
    ):
        """Scans the layers; returns the stream, the cache, and each layer's output if collected."""
        rope = Rope.make(self.config, positions)
        count = self.config.num_layers
        drops = None if dropout_key is None else jax.random.split(dropout_key, count)

        def body(carry, per_layer):
            x, cache = carry
            block, drop, layer = per_layer
            memory = None if cached is None else Memory(cache, layer, cached[1])
            x, cache = block(x, rope, keys, compute=compute, dropout_key=drop, memory=memory)
            return (x, cache), x if collect else None

        xs = (self.layers, drops, jnp.arange(count))
        body = compute.checkpoint(body)
        start = (x, None if cached is None else cached[0])
        (x, cache), outs = jax.lax.scan(body, start, xs, unroll=min(compute.unroll, count))
        return x, cache, outs
