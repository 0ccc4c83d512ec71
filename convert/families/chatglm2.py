"""ChatGLM2, ChatGLM3 and GLM-4 in their released layout: fused [q | k | v] and [gate | up]."""

import dataclasses

from convert.families.glm import QKV
from convert.table import entry

_LAYER = "transformer.encoder.layers.{i}."
_FUSED = entry(_LAYER + "self_attention.query_key_value.*", *QKV, fold=2)

ENTRIES = (
    entry("transformer.embedding.word_embeddings.weight", "embedding"),
    entry(_LAYER + "input_layernorm.*", "layers.attention_norm.*"),
    _FUSED,
    entry(_LAYER + "self_attention.dense.*", "layers.attention.o_proj.*"),
    entry(_LAYER + "post_attention_layernorm.*", "layers.mlp_norm.*"),
    entry(_LAYER + "mlp.dense_h_to_4h.*", "layers.mlp.gate_proj.*", "layers.mlp.up_proj.*"),
    entry(_LAYER + "mlp.dense_4h_to_h.*", "layers.mlp.down_proj.*"),
    entry("transformer.encoder.final_layernorm.*", "final_norm.*"),
    entry("transformer.output_layer.weight", "head"),
    entry("transformer.output_layer.weight", "embedding", alias=True),
    entry("classifier_head.*", "classifier.out_proj.*"),
)
UNGROUPED = tuple(
    dataclasses.replace(e, by_head=True) if e is _FUSED else e for e in ENTRIES
)  # fmt: skip
