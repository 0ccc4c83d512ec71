"""ChatGLM-6B: queries, keys and values take turns head by head; the head repeats the embedding."""

from convert.families.glm import QKV
from convert.table import entry

_LAYER = "transformer.layers.{i}."

ENTRIES = (
    entry("transformer.word_embeddings.weight", "embedding"),
    entry(_LAYER + "input_layernorm.*", "layers.attention_norm.*"),
    entry(_LAYER + "attention.query_key_value.*", *QKV, fold=2, by_head=True),
    entry(_LAYER + "attention.dense.*", "layers.attention.o_proj.*"),
    entry(_LAYER + "post_attention_layernorm.*", "layers.mlp_norm.*"),
    entry(_LAYER + "mlp.dense_h_to_4h.*", "layers.mlp.up_proj.*"),
    entry(_LAYER + "mlp.dense_4h_to_h.*", "layers.mlp.down_proj.*"),
    entry("transformer.final_layernorm.*", "final_norm.*"),
    entry("lm_head.weight", "head"),
    entry("lm_head.weight", "embedding", alias=True),
    entry("classifier_head.*", "classifier.out_proj.*"),
)
