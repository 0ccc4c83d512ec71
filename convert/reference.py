"""The released network beside ours: Transformers' ``GlmForCausalLM`` on the released weights.

Transformers has GLM-4's network, which is ChatGLM2's and ChatGLM3's too. What it lacks (GLM's
positions, ChatGLM-6B) can only be run with the code that came with the weights, which is not done.
The renaming here is written out by hand on purpose: it must not share a mistake with the tables.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from convert.plan import Plan
from convert.tensors import Tensor, read_all
from glm_jax.errors import UserError

BATCH, LENGTH = 2, 48
_MODEL = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}


def logit_difference(src: Path, dst: Path, plan: Plan) -> float:
    """The largest difference of the logits of random tokens, both models in float32.

    Raises:
      UserError: Transformers has no such network, is not installed, or memory is short.
    """
    config = plan.config
    if plan.layout.name not in ("chatglm2", "transformers") or config.quantization != "none":
        raise UserError(
            f"--logits: Transformers has no network for {plan.family} ({plan.layout.title}"
            f"{', quantised' if config.quantization != 'none' else ''}); its released code would "
            "have to be run, which this command never does. The tensors above were compared; the "
            "test suite compares the network itself with the released code's outputs"
        )
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"--logits: {error.name} is missing; pip install torch transformers"
        ) from None
    needed = 2 * 4 * sum(int(np.prod(x.shape)) for x in plan.sources.values())
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > free * 1.2:
        raise UserError(f"--logits: both models in float32 take {needed / 1e9:.0f} GB of memory; "
                        f"{free / 1e9:.0f} GB are free")  # fmt: skip
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, min(config.vocab_size, 60_000), (BATCH, LENGTH), dtype=np.int64)
    theirs = _run_reference(torch, transformers, plan, tokens)
    return float(np.abs(theirs - _run_ours(dst, tokens)).max())


def _run_reference(torch, transformers, plan: Plan, tokens: np.ndarray) -> np.ndarray:
    c = plan.config
    settings = transformers.GlmConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.embed_dim,
        intermediate_size=c.mlp_dim,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        rms_norm_eps=c.norm_eps,
        attention_bias=c.qkv_bias,
        max_position_embeddings=c.max_seq_len,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": c.rope_theta,
            "partial_rotary_factor": c.rope_fraction,
        },
        tie_word_embeddings=False,
        pad_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = transformers.GlmForCausalLM(settings)
    state = dict(_renamed(plan))
    if "lm_head.weight" not in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    tensors = {name: torch.from_numpy(x.astype(np.float32)) for name, x in state.items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(settings)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens)).logits.numpy()


def _renamed(plan: Plan) -> Any:
    sources: dict[str, Tensor] = plan.sources
    c = plan.config
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    for name, x in sources.items():
        if plan.layout.name == "transformers":
            yield name.removeprefix(plan.prefix.removesuffix("model.")), read_all(x)
        elif name in _MODEL:
            yield _MODEL[name], read_all(x)
        elif ".layers." in name:
            number, rest = name.split(".layers.")[1].split(".", 1)
            if rest in _LAYER:
                yield f"model.layers.{number}.{_LAYER[rest]}", read_all(x)
            elif rest.startswith("self_attention.query_key_value."):
                kind = rest.rsplit(".", 1)[1]
                whole = read_all(x)
                for letter, a, b in (("q", 0, q), ("k", q, q + kv), ("v", q + kv, q + 2 * kv)):
                    yield f"model.layers.{number}.self_attn.{letter}_proj.{kind}", whole[a:b]


def _run_ours(dst: Path, tokens: np.ndarray) -> np.ndarray:
    import jax

    from glm_jax.ckpts import load_model
    from glm_jax.nn import GLM, causal_ranges

    model = load_model(dst, dtype=np.float32)
    positions = np.zeros((BATCH, 2, LENGTH), np.int32)
    positions[:, 0] = np.arange(LENGTH)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(GLM.__call__)
        logits = run(model, tokens.astype(np.int32), positions, *causal_ranges(BATCH, LENGTH))
    return np.asarray(logits)
