"""The whole network, from token ids to logits."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from glm_jax.config import GLMConfig
from glm_jax.nn import params
from glm_jax.nn.attention import Keys, LayerPrefix, Memory
from glm_jax.nn.block import Block
from glm_jax.nn.cache import KVCache
from glm_jax.nn.compute import Compute
from glm_jax.nn.heads import ClassificationHead
from glm_jax.nn.norms import Norm
from glm_jax.nn.positions import LearnedPositions, Rope
from glm_jax.ops.dropout import dropout
from glm_jax.ops.linear import linear
from glm_jax.sharding import constrain


class Trace(NamedTuple):
    """What flows between the parts: for parity tests and for looking inside."""

    embedding: Float[Array, "B T D"]
    layers: Float[Array, "L B T D"]
    final_norm: Float[Array, "B T D"]


class Prefix(Protocol):
    """Keys and values to stand before every row's own: ``glm_jax.peft.PrefixEncoder``."""

    length: int

    def __call__(
        self, dropout_key: Array | None = None
    ) -> tuple[Float[Array, "L P K H"], Float[Array, "L P K H"]]: ...


class GLM(nnx.Module):
    """Any model of the family. A pytree of ``nnx.Param``; layers are stacked on a leading axis.

    >>> model = GLM(config, jax.random.key(0))
    >>> logits = jax.jit(GLM.__call__)(model, tokens, positions, k_start, k_end)

    With a ``prefix`` (P-Tuning v2) all methods take the same arguments: positions, key ranges and
    slots count tokens, and every query of a row that starts at key 0 sees the prefix as well. Rows
    with several packed documents cannot have one: the second document's run does not touch it.
    """

    def __init__(self, config: GLMConfig, key: Array, *, param_dtype=jnp.float32):
        keys = jax.random.split(key, 4)
        head_key = jax.random.fold_in(key, 4)
        table = (config.vocab_size, config.embed_dim), ("vocab", "embed")
        self.config = config
        self.embedding = params.normal(keys[0], *table, config.init_std, param_dtype)
        self.positions = (
            LearnedPositions(config, keys[1], param_dtype) if config.position == "learned" else None
        )
        self.layers = params.stack(
            lambda k: Block(config, k, param_dtype), config.num_layers, keys[2]
        )
        self.stacks: tuple[int, ...] = ()  # of their sizes, where there are several: nn.stacks
        self.final_norm = Norm(config, param_dtype)
        self.head = (
            None
            if config.tied_head
            else params.normal(keys[3], *table, config.init_std, param_dtype)
        )
        self.classifier: ClassificationHead | None = nnx.data(
            ClassificationHead(config, config.num_labels, head_key, dtype=param_dtype)
            if config.num_labels
            else None
        )
        self.prefix: Prefix | None = nnx.data(None)

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
          cache: from ``new_cache``.
          slots: first slot of each row's tokens.

        Raises:
          ValueError: the cache was not made for this model's prefix.
        """
        prefix = 0 if self.prefix is None else self.prefix.length
        if cache.prefix_length != prefix:
            raise ValueError(
                f"the cache holds a prefix of {cache.prefix_length} tokens, the model has one of "
                f"{prefix}; make the cache with model.new_cache"
            )
        x = self.embed(tokens, positions, compute.dtype)
        keys = Keys(k_start, k_end)
        x, written, _ = self._run_layers(x, positions, keys, compute, cached=(cache, slots))
        assert written is not None
        return self.final_norm(x), written

    def new_cache(self, batch: int, length: int, dtype=jnp.float32) -> KVCache:
        """An empty cache for ``length`` tokens per row; a prefix is in it already.

        Args:
          dtype: of its keys and values (``Compute.cache_type``); int8 keeps scales beside them.
        """
        apart = isinstance(self.layers, nnx.List) and not self.stacks
        zeros = partial(KVCache.zeros, self.config, batch, dtype=dtype, stacked=not apart)
        if self.prefix is None:
            return zeros(length)
        return zeros(self.prefix.length + length).with_prefix(*self.prefix())

    def classify(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B 2 T"],
        k_start: Int[Array, "B T"],
        k_end: Int[Array, "B T"],
        lengths: Int[Array, " B"],
        *,
        compute: Compute = Compute(),
        dropout_key: Array | None = None,
    ) -> Float[Array, "B C"]:
        """Class scores of each row, float32; other arguments as ``__call__``.

        Args:
          lengths: real tokens of each right-padded row.

        Raises:
          ValueError: the config has no ``num_labels``.
        """
        if self.classifier is None:
            raise ValueError("this model has no classification head: its config's num_labels is 0")
        keys = Keys(k_start, k_end)
        x = self.hidden(tokens, positions, keys, compute=compute, dropout_key=dropout_key)
        return self.classifier(x, lengths)

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
        prefix_key = None if dropout_key is None else jax.random.fold_in(dropout_key, 2)
        prefix = self._layer_prefixes(prefix_key)
        x, _, _ = self._run_layers(x, positions, keys, compute, layer_key, prefix=prefix)
        return self.final_norm(x)

    def trace(self, tokens, positions, k_start, k_end, *, compute: Compute = Compute()) -> Trace:
        """Every intermediate state of a forward pass; arguments as ``__call__``."""
        embedded = self.embed(tokens, positions, compute.dtype)
        keys = Keys(k_start, k_end)
        prefix = self._layer_prefixes()
        x, _, layers = self._run_layers(
            embedded, positions, keys, compute, prefix=prefix, collect=True
        )
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
        head = self.head_weight.astype(hidden.dtype)
        scores = linear(hidden, head)
        return constrain(scores.astype(jnp.float32), "batch", "length", "vocab")

    def _layer_prefixes(self, dropout_key: Array | None = None) -> LayerPrefix | None:
        return None if self.prefix is None else LayerPrefix(*self.prefix(dropout_key))

    def _run_layers(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B 2 T"],
        keys: Keys,
        compute: Compute,
        dropout_key: Array | None = None,
        *,
        cached: tuple[KVCache, Int[Array, " B"]] | None = None,
        prefix: LayerPrefix | None = None,
        collect: bool = False,
    ) -> tuple[Any, Any, Any]:
        """Scans the layers; returns the stream, the cache, and each layer's output if collected.

        Args:
          prefix: stacked over the layers; None where the cache holds it.
        """
        rope = Rope.make(self.config, positions)
        count = self.config.num_layers
        drops = None if dropout_key is None else jax.random.split(dropout_key, count)

        if cached is not None and (held := cached[0].prefix_length):
            keys, cached = keys.after(held), (cached[0], cached[1] + held)

        def body(carry, per_layer):
            x, cache = carry
            block, drop, layer, before = per_layer
            memory = None if cached is None else Memory(cache, layer, cached[1])
            x, cache = block(
                x, rope, keys, compute=compute, dropout_key=drop, memory=memory, prefix=before
            )
            return (x, cache), x if collect else None

        start = (x, None if cached is None else cached[0])
        if isinstance(self.layers, nnx.List) and not self.stacks:  # glm_jax.nn.unstacked
            return _each(body, start, self.layers, (drops, np.arange(count), prefix))
        body, xs = compute.checkpoint(body), (drops, jnp.arange(count), prefix)
        if not isinstance(self.layers, nnx.List):
            return _scan(body, start, self.layers, xs, compute.unroll)
        outs, first, cache = [], 0, start[1]
        for size, stack in zip(self.stacks, self.layers, strict=True):
            mine = jax.tree.map(lambda x, a=first, b=first + size: x[a:b], xs)
            x, cache, out = _scan(body, (x, cache), stack, mine, compute.unroll)
            outs, first = [*outs, out], first + size
        return x, cache, None if outs[0] is None else jnp.concatenate(outs)


def _scan(body, carry, layers, others, unroll: int) -> tuple[Any, Any, Any]:
    count = len(others[1])
    (x, cache), outs = jax.lax.scan(body, carry, (layers, *others), unroll=min(unroll, count))
    return x, cache, outs


def _each(body, carry, layers: nnx.List, others) -> tuple[Any, Any, Any]:
    """``jax.lax.scan`` of ``body`` over layers that are not stacked."""
    outs = []
    for i, block in enumerate(layers):
        carry, out = body(carry, (block, *jax.tree.map(lambda x, i=i: x[i], others)))
        outs.append(out)
    return (*carry, None if outs[0] is None else jnp.stack(outs))
