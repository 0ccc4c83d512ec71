"""The network: one transformer whose every part is a field of ``GLMConfig``.

Axis letters, everywhere in the package:
  B batch, T query length, S key length, N query heads, K kv heads, G query heads per kv head,
  H head dim, D model width, F mlp width, V vocabulary, L layers.
"""

from glm_jax.nn.arranged import arranged, check_not_prepared, is_arranged, packed_bytes
from glm_jax.nn.cache import KVCache
from glm_jax.nn.compute import Compute
from glm_jax.nn.heads import ClassificationHead
from glm_jax.nn.loss import lm_loss
from glm_jax.nn.masks import causal_ranges, prefix_ranges
from glm_jax.nn.stacks import cut_layers, joined_layers
from glm_jax.nn.transformer import GLM
from glm_jax.nn.unstacked import unstacked

__all__ = [
    "GLM",
    "ClassificationHead",
    "Compute",
    "KVCache",
    "arranged",
    "causal_ranges",
    "check_not_prepared",
    "cut_layers",
    "is_arranged",
    "joined_layers",
    "lm_loss",
    "packed_bytes",
    "prefix_ranges",
    "unstacked",
]
