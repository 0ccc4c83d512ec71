"""Every released text model as data. Sizes: the spec's tables of the released checkpoints."""

from __future__ import annotations

import dataclasses

from glm_jax.config import GLMConfig
from glm_jax.special import SpecialTokens

# Vocabularies (THUDM/GLM data_utils/tokenization*.py and the released tokenizers).
BERT = SpecialTokens(pad=0, eos=0, cls=101, sep=102, mask=103, unk=100, sop=30522, eop=30523)
ROBERTA = SpecialTokens(pad=2, eos=2, cls=0, sep=2, mask=50264, unk=3, sop=50265, eop=50266)
GPT2 = SpecialTokens(
    pad=50256,
    eos=50256,
    cls=50259,
    sep=50261,
    mask=50260,
    unk=50262,
    sop=50257,
    eop=50258,
    gmask=50263,
    smask=50264,
    dblock=50265,
)
CHINESE = SpecialTokens(
    pad=50000,
    eos=50000,
    cls=50002,
    sep=50001,
    mask=50003,
    unk=50004,
    sop=50006,
    eop=50007,
    gmask=50009,
    smask=50008,
    dblock=50010,
)
# In the 10B's vocabulary [gMASK] has the id of <|endofpiece|>; its released converter copies that
# row to 50009, the id its Hugging Face tokenizer uses.
CHINESE_UNFIXED = dataclasses.replace(CHINESE, gmask=50007, dblock=50009)
CHATGLM = SpecialTokens(pad=3, eos=130005, mask=130000, gmask=130001, sop=130004, eop=130005)
CHATGLM_V1_0 = SpecialTokens(pad=0, eos=20002, mask=150000, gmask=150001, sop=150004, eop=150005)
CHATGLM2 = SpecialTokens(pad=0, eos=2, mask=64789, gmask=64790, smask=64791, sop=64792, eop=64793)
# sqrt(2 * 28): the released block never learns the true number of layers, so 28 always.
CHATGLM_RESIDUAL_SCALE = 56**0.5
GLM4 = SpecialTokens(
    pad=151329, eos=151329, mask=151330, gmask=151331, smask=151332, sop=151333, eop=151334
)


def glm(
    name: str, layers: int, width: int, heads: int, rows: int, vocab: int, special
) -> GLMConfig:
    """A model of the GLM release: pre-LN, two learned position tables, everything biased.

    The activation is the exact GELU of the released Hugging Face code, against which the golden
    vectors were made; THUDM/GLM's training code has the tanh form (``gelu_tanh``).
    """
    return GLMConfig(
        vocab_size=vocab,
        num_layers=layers,
        embed_dim=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        mlp_dim=4 * width,
        max_seq_len=rows,
        position="learned",
        norm="layernorm",
        activation="gelu",
        linear_bias=True,
        tied_head=True,
        prefix_lm=True,
        embed_dropout=0.1,
        attention_dropout=0.1,
        hidden_dropout=0.1,
        special=special,
        stop_ids=special.require("eop") if special.eop is not None else (),
        name=name,
    )


def _chatglm(name: str, vocab: int, special: SpecialTokens) -> GLMConfig:
    return GLMConfig(
        vocab_size=vocab,
        num_layers=28,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_dim=16384,
        max_seq_len=2048,
        rope_2d=True,
        rope_interleaved=False,
        rope_fraction=1.0,
        rope_float16_freqs=True,
        norm="layernorm",
        residual_scale=CHATGLM_RESIDUAL_SCALE,
        activation="gelu_tanh",
        linear_bias=True,
        tied_head=True,
        prefix_lm=True,
        special=special,
        stop_ids=special.require("eos"),
        name=name,
    )


def _chatglm2(name: str, seq_len: int, rope_ratio: float = 1) -> GLMConfig:
    return GLMConfig(
        vocab_size=65024,
        num_layers=28,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=2,
        head_dim=128,
        mlp_dim=13696,
        max_seq_len=seq_len,
        rope_theta=10_000.0 * rope_ratio,
        special=CHATGLM2,
        stop_ids=(2,),
        name=name,
    )


def _glm4(name: str, seq_len: int, rope_ratio: float, kv_heads: int = 2) -> GLMConfig:
    return _chatglm2(name, seq_len, rope_ratio).replace(
        vocab_size=151552,
        num_layers=40,
        num_kv_heads=kv_heads,
        norm_eps=1.5625e-07,
        special=GLM4,
        stop_ids=(151329, 151336, 151338),
    )


_ALL = (
    glm("glm-base", 12, 768, 12, 512, 30592, BERT),
    glm("glm-large", 24, 1024, 16, 512, 30592, BERT),
    glm("glm-doc", 24, 1024, 16, 512, 30592, BERT),
    glm("glm-410m", 30, 1024, 16, 512, 30592, BERT),
    glm("glm-515m", 30, 1152, 18, 512, 30592, BERT),
    glm("glm-roberta-large", 24, 1024, 16, 512, 50304, ROBERTA),
    glm("glm-large-chinese", 24, 1024, 16, 1024, 50048, CHINESE),
    glm("glm-2b", 36, 2048, 32, 1024, 50304, GPT2),
    glm("glm-10b", 48, 4096, 64, 1024, 50304, GPT2),
    glm("glm-10b-chinese", 48, 4096, 64, 1024, 50048, CHINESE_UNFIXED),
    _chatglm("chatglm-6b", 130528, CHATGLM),
    _chatglm("chatglm-6b-v1.0", 150528, CHATGLM_V1_0),
    _chatglm2("chatglm2-6b", 32768),
    _chatglm2("chatglm2-6b-32k", 32768, rope_ratio=50),
    _chatglm2("chatglm3-6b", 8192),
    _chatglm2("chatglm3-6b-base", 32768),
    _chatglm2("chatglm3-6b-32k", 32768, rope_ratio=50),
    _chatglm2("chatglm3-6b-128k", 131072, rope_ratio=500),
    _glm4("glm-4-9b", 8192, rope_ratio=1),
    _glm4("glm-4-9b-chat", 131072, rope_ratio=500),
    _glm4("glm-4-9b-chat-1m", 1048576, rope_ratio=10_000, kv_heads=4),
    GLMConfig(
        # Not a release: GLM-4's architecture at a size that a CPU can time (benchmarks/).
        vocab_size=32768,
        num_layers=12,
        embed_dim=768,
        num_heads=12,
        num_kv_heads=2,
        head_dim=64,
        mlp_dim=2048,
        max_seq_len=8192,
        norm_eps=1.5625e-07,
        name="bench-120m",
    ),
)
PRESETS: dict[str, GLMConfig] = {config.name: config for config in _ALL}
