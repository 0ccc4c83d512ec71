"""``GlmForCausalLM`` of Transformers (glm-4-9b-hf, glm-4-9b-chat-hf): gate and up stay fused."""

from convert.table import entry

_LAYER = "layers.{i}."

ENTRIES = (
    entry("embed_tokens.weight", "embedding"),
    entry(_LAYER + "input_layernorm.*", "layers.attention_norm.*"),
    *(
        entry(f"{_LAYER}self_attn.{x}_proj.*", f"layers.attention.{x}_proj.*", fold=2)
        for x in "qkv"
    ),
    entry(_LAYER + "self_attn.o_proj.*", "layers.attention.o_proj.*"),
    entry(_LAYER + "post_attention_layernorm.*", "layers.mlp_norm.*"),
    entry(_LAYER + "mlp.gate_up_proj.*", "layers.mlp.gate_proj.*", "layers.mlp.up_proj.*"),
    entry(_LAYER + "mlp.down_proj.*", "layers.mlp.down_proj.*"),
    entry("norm.*", "final_norm.*"),
    entry("/lm_head.weight", "head"),
    entry("/lm_head.weight", "embedding", alias=True),
    entry("/score.*", "classifier.out_proj.*"),
)
