"""``config.json`` of the released code and of Transformers, read into a ``GLMConfig`` and back.

Four layouts: THUDM's ``glm``, ChatGLM-6B's ``chatglm``, ChatGLM2-to-GLM-4's ``chatglm`` and
Transformers' ``glm`` (``GlmForCausalLM``). Entries that do not describe the network are carried
along, so that ``GLMConfig.from_hf(c).to_hf()`` holds all that ``c`` held.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from glm_jax import presets
from glm_jax.config import GLMConfig
from glm_jax.special import SpecialTokens

# Vocabulary sizes that tell which ids the command tokens have where config.json does not say.
_VOCABULARIES = {
    30592: presets.BERT,
    50304: presets.GPT2,
    50048: presets.CHINESE,
    65024: presets.CHATGLM2,
    151552: presets.GLM4,
}


def from_hf(hf: Mapping[str, Any]) -> GLMConfig:
    """The network that a ``config.json`` describes.

    Raises:
      ValueError: an entry is missing, or asks for something the released models do not have.
    """
    layout = detect_layout(hf)
    try:
        config = _READERS[layout](hf)
    except KeyError as error:
        raise ValueError(f"config.json ({layout} layout) lacks {error.args[0]!r}") from error
    name = str(hf.get("_name_or_path", "")).rstrip("/").rsplit("/", 1)[-1]
    written = _WRITERS[layout](config)
    extras = {key: value for key, value in hf.items() if written.get(key, _ABSENT) != value}
    return config.replace(name=name, hf_extras=json.dumps({"layout": layout, "entries": extras}))


_ABSENT = object()


def to_hf(config: GLMConfig, layout: str = "original") -> dict[str, Any]:
    """``config.json`` entries in the released (``original``) or the ``transformers`` layout.

    Raises:
      ValueError: the layout cannot express the network.
    """
    extras = json.loads(config.hf_extras) if config.hf_extras else {"layout": None, "entries": {}}
    wanted = _original_layout(config) if layout == "original" else layout
    if wanted not in _WRITERS:
        raise ValueError(f"layout is {layout!r}; choose original or transformers")
    if wanted == "transformers" and _original_layout(config) != "chatglm2":
        raise ValueError("the transformers layout (GlmForCausalLM) holds GLM-4's network only")
    entries = extras["entries"] if extras["layout"] == wanted else {}
    return {**_WRITERS[wanted](config), **entries}


def detect_layout(hf: Mapping[str, Any]) -> str:
    """``glm``, ``chatglm``, ``chatglm2`` or ``transformers``.

    Raises:
      ValueError: none of them.
    """
    if "inner_hidden_size" in hf or "position_encoding_2d" in hf:
        return "chatglm"
    if "padded_vocab_size" in hf or "ffn_hidden_size" in hf or "kv_channels" in hf:
        return "chatglm2"
    if "max_sequence_length" in hf or "block_position_encoding" in hf:
        return "glm"
    if "num_key_value_heads" in hf and "intermediate_size" in hf:
        return "transformers"
    raise ValueError(
        f"config.json of model_type {hf.get('model_type')!r} is none of GLM's layouts (it has "
        "neither inner_hidden_size, padded_vocab_size, max_sequence_length nor "
        "num_key_value_heads with intermediate_size)"
    )


def _original_layout(config: GLMConfig) -> str:
    if config.position == "learned":
        return "glm"
    return "chatglm" if config.rope_2d or config.residual_scale is not None else "chatglm2"


def _refuse(hf: Mapping[str, Any], **expected: Any) -> None:
    for key, value in expected.items():
        if hf.get(key, value) != value:
            raise ValueError(f"config.json has {key} {hf[key]!r}; only {value!r} was ever released")


def _read_glm(hf: Mapping[str, Any]) -> GLMConfig:
    _refuse(hf, relative_encoding=False, block_position_encoding=True)
    vocab = hf["vocab_size"]
    base = presets.glm(
        "",
        hf["num_layers"],
        hf["hidden_size"],
        hf["num_attention_heads"],
        hf["max_sequence_length"],
        vocab,
        _VOCABULARIES.get(vocab, SpecialTokens()),
    )
    return base.replace(
        embed_dropout=hf.get("embedding_dropout_prob", 0.1),
        attention_dropout=hf.get("attention_dropout_prob", 0.1),
        hidden_dropout=hf.get("output_dropout_prob", 0.1),
        init_std=hf.get("initializer_range", 0.02),
        activation={"gelu": "gelu", "gelu_new": "gelu_tanh"}[hf.get("hidden_act", "gelu")],
    )


def _write_glm(config: GLMConfig) -> dict[str, Any]:
    entries = {
        "model_type": "glm",
        "architectures": ["GLMModel"],
        "vocab_size": config.vocab_size,
        "num_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "max_sequence_length": config.max_seq_len,
        "embedding_dropout_prob": config.embed_dropout,
        "attention_dropout_prob": config.attention_dropout,
        "output_dropout_prob": config.hidden_dropout,
        "initializer_range": config.init_std,
        "block_position_encoding": True,
        "relative_encoding": False,
        "attention_scale": 1.0,
    }
    # The released code knows no such entry: exact GELU is what it computes, and our default.
    if config.activation == "gelu_tanh":
        entries["hidden_act"] = "gelu_new"
    return entries


def _read_chatglm(hf: Mapping[str, Any]) -> GLMConfig:
    width, heads = hf["hidden_size"], hf["num_attention_heads"]
    v1_0 = "gmask_token_id" not in hf
    special = SpecialTokens(
        pad=hf.get("pad_token_id", 0 if v1_0 else 3),
        eos=hf["eos_token_id"],
        mask=hf.get("mask_token_id", hf["bos_token_id"] - 4),
        gmask=hf.get("gmask_token_id", hf["bos_token_id"] - 3),
        sop=hf["bos_token_id"],
        eop=_eop_v1_0(hf) if v1_0 else hf["eos_token_id"],
    )
    two_rows = hf.get("position_encoding_2d", True)
    return presets.PRESETS["chatglm-6b"].replace(
        vocab_size=hf["vocab_size"],
        num_layers=hf["num_layers"],
        embed_dim=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        mlp_dim=hf.get("inner_hidden_size") or 4 * width,
        max_seq_len=hf["max_sequence_length"],
        norm_eps=hf.get("layernorm_epsilon", 1e-5),
        rope_2d=two_rows,
        tied_head=hf.get("tie_word_embeddings", True),
        special=special,
        stop_ids=(hf["eos_token_id"],),
    )


def _eop_v1_0(hf: Mapping[str, Any]) -> int | None:
    """Version 1.0's end of piece, which is never its end of text: that tells it from 1.1."""
    eop = hf["bos_token_id"] + 1
    return eop if eop != hf["eos_token_id"] else None


def _write_chatglm(config: GLMConfig) -> dict[str, Any]:
    entries = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "vocab_size": config.vocab_size,
        "num_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "inner_hidden_size": config.mlp_dim,
        "max_sequence_length": config.max_seq_len,
        "layernorm_epsilon": config.norm_eps,
        "position_encoding_2d": config.rope_2d,
        "bos_token_id": config.special.sop,
        "eos_token_id": config.special.eos,
        "pad_token_id": config.special.pad,
    }
    # Version 1.0's files leave its mask ids to the code: writing them would make it a 1.1.
    if config.special.eop == config.special.eos:
        entries["mask_token_id"] = config.special.mask
        entries["gmask_token_id"] = config.special.gmask
    if not config.tied_head:
        entries["tie_word_embeddings"] = False
    return entries


def _read_chatglm2(hf: Mapping[str, Any]) -> GLMConfig:
    _refuse(hf, apply_residual_connection_post_layernorm=False, post_layer_norm=True)
    if "num_layers" not in hf and "num_hidden_layers" in hf:
        hf = {**hf, "num_layers": hf["num_hidden_layers"]}
    heads, vocab = hf["num_attention_heads"], hf["padded_vocab_size"]
    stop = hf.get("eos_token_id", 2)
    stops = tuple(stop) if isinstance(stop, list) else (stop,)
    special = _VOCABULARIES.get(vocab, SpecialTokens())
    multi_query = hf.get("multi_query_attention", False)
    return GLMConfig(
        vocab_size=vocab,
        num_layers=hf["num_layers"],
        embed_dim=hf["hidden_size"],
        num_heads=heads,
        num_kv_heads=hf.get("multi_query_group_num", 1) if multi_query else heads,
        head_dim=hf.get("kv_channels") or hf["hidden_size"] // heads,
        mlp_dim=hf["ffn_hidden_size"],
        max_seq_len=hf["seq_length"],
        rope_theta=10_000.0 * hf.get("rope_ratio", 1),
        norm="rmsnorm" if hf.get("rmsnorm", True) else "layernorm",
        norm_eps=hf.get("layernorm_epsilon", 1e-5),
        qkv_bias=hf.get("add_qkv_bias", False) or hf.get("add_bias_linear", False),
        linear_bias=hf.get("add_bias_linear", False),
        tied_head=hf.get("tie_word_embeddings", False),
        attention_dropout=hf.get("attention_dropout", 0.0),
        hidden_dropout=hf.get("hidden_dropout", 0.0),
        special=SpecialTokens(
            **{
                **vars(special),
                "pad": hf.get("pad_token_id", special.pad),
                "eos": next(iter(stops), special.eos),
            }
        ),
        stop_ids=stops,
    )


def _write_chatglm2(config: GLMConfig) -> dict[str, Any]:
    stops = list(config.stop_ids)
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "padded_vocab_size": config.vocab_size,
        "num_layers": config.num_layers,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "multi_query_attention": config.num_kv_heads != config.num_heads,
        "multi_query_group_num": config.num_kv_heads,
        "kv_channels": config.head_dim,
        "ffn_hidden_size": config.mlp_dim,
        "seq_length": config.max_seq_len,
        "rope_ratio": _number(config.rope_theta / 10_000.0),
        "rmsnorm": config.norm == "rmsnorm",
        "layernorm_epsilon": config.norm_eps,
        "add_qkv_bias": config.qkv_bias,
        "add_bias_linear": config.linear_bias,
        "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
        "original_rope": True,
        "tie_word_embeddings": config.tied_head,
        "attention_dropout": config.attention_dropout,
        "hidden_dropout": config.hidden_dropout,
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
        "pad_token_id": config.special.pad,
    }


def _number(x: float) -> float | int:
    return int(x) if x == int(x) else x


def _read_transformers(hf: Mapping[str, Any]) -> GLMConfig:
    _refuse(hf, hidden_act="silu")
    rope = hf.get("rope_parameters") or {}
    original = {
        "padded_vocab_size": hf["vocab_size"],
        "num_layers": hf["num_hidden_layers"],
        "hidden_size": hf["hidden_size"],
        "num_attention_heads": hf["num_attention_heads"],
        "multi_query_attention": True,
        "multi_query_group_num": hf["num_key_value_heads"],
        "kv_channels": hf.get("head_dim"),
        "ffn_hidden_size": hf["intermediate_size"],
        "seq_length": hf["max_position_embeddings"],
        "layernorm_epsilon": hf.get("rms_norm_eps", 1.5625e-07),
        "add_qkv_bias": hf.get("attention_bias", False),
        "attention_dropout": hf.get("attention_dropout", 0.0),
        "tie_word_embeddings": hf.get("tie_word_embeddings", False),
        "eos_token_id": hf.get("eos_token_id") or [],
        "pad_token_id": hf.get("pad_token_id"),
    }
    if not original["eos_token_id"]:
        original["eos_token_id"] = [151329, 151336, 151338]
    fraction = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor", 0.5))
    return _read_chatglm2(original).replace(
        rope_theta=float(rope.get("rope_theta", hf.get("rope_theta", 10_000.0))),
        rope_fraction=fraction,
        init_std=hf.get("initializer_range", 0.02),
    )


def _write_transformers(config: GLMConfig) -> dict[str, Any]:
    stops = list(config.stop_ids)
    return {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "partial_rotary_factor": config.rope_fraction,
        "attention_bias": config.qkv_bias,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied_head,
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
        "pad_token_id": config.special.pad,
    }


_READERS = {
    "glm": _read_glm,
    "chatglm": _read_chatglm,
    "chatglm2": _read_chatglm2,
    "transformers": _read_transformers,
}
_WRITERS = {
    "glm": _write_glm,
    "chatglm": _write_chatglm,
    "chatglm2": _write_chatglm2,
    "transformers": _write_transformers,
}
