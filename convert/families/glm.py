"""GLM as THUDM's Hugging Face code names it, behind an optional ``glm.``."""

from convert.table import entry

QKV = tuple(f"layers.attention.{x}_proj.*" for x in "qkv")
_LAYER = "transformer.layers.{i}."

ENTRIES = (
    entry("word_embeddings.weight", "embedding"),
    entry("transformer.position_embeddings.weight", "positions.position"),
    entry("transformer.block_position_embeddings.weight", "positions.block_position"),
    entry(_LAYER + "input_layernorm.*", "layers.attention_norm.*"),
    entry(_LAYER + "attention.query_key_value.*", *QKV, fold=2),
    entry(_LAYER + "attention.dense.*", "layers.attention.o_proj.*"),
    entry(_LAYER + "post_attention_layernorm.*", "layers.mlp_norm.*"),
    entry(_LAYER + "mlp.dense_h_to_4h.*", "layers.mlp.up_proj.*"),
    entry(_LAYER + "mlp.dense_4h_to_h.*", "layers.mlp.down_proj.*"),
    entry("transformer.final_layernorm.*", "final_norm.*"),
    entry("/dense.*", "classifier.dense.*"),
    entry("/out_proj.*", "classifier.out_proj.*"),
)
