"""One network, many configs: ``GLMConfig`` and what can be counted from it alone.

Every field is an independent choice of ``glm_jax.nn``; a family is a set of values
(``glm_jax.presets``), never a subclass. Hugging Face's ``config.json`` is read and written by
``glm_jax.hf_config``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from glm_jax.special import SpecialTokens


@dataclasses.dataclass(frozen=True)
class GLMConfig:
    """What the network is: its sizes and the form of each of its parts. Hashable.

    Raises:
      ValueError: a size that is not positive, heads that do not divide, an unknown choice.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_seq_len: int
    """Trained length; with learned positions also the last row of both tables."""

    position: Literal["learned", "rotary"] = "rotary"
    """``learned``: two tables of ``max_seq_len + 1`` rows, position and block position (GLM)."""
    rope_2d: bool = False
    """Half of the head turns by position, half by block position (ChatGLM-6B)."""
    rope_interleaved: bool = True
    """Pairs (0,1),(2,3).. (ChatGLM2 on) or (i, i + n/2), called rotate-half (ChatGLM-6B)."""
    rope_fraction: float = 0.5
    """The leading part of each (half) head that turns; the rest passes."""
    rope_theta: float = 10_000.0
    """Base of the frequencies, ``rope_ratio`` included."""
    rope_float16_freqs: bool = False
    """Frequencies rounded to float16, as ChatGLM-6B's buffers are."""

    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_eps: float = 1e-5
    residual_scale: float | None = None
    """None: ``x + f(norm(x))``. A number a: ``a * norm(x) + f(norm(x))`` (ChatGLM-6B)."""
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "swiglu"
    """``gelu`` is the exact (erf) form, ``gelu_tanh`` its tanh approximation."""
    qkv_bias: bool = True
    linear_bias: bool = False
    """Biases of the attention output and of the MLP."""
    tied_head: bool = False
    prefix_lm: bool = False
    """Part A sees all of Part A (GLM, ChatGLM-6B); otherwise every token sees its past."""

    quantization: Literal["none", "int8", "int4"] = "none"
    """The matrices of every layer are kept as integers, as in the released int8 and int4 files."""
    quant_group: int = 0
    """Input columns that share a scale; 0: all, one scale per output row as released."""
    num_labels: int = 0
    """Classes of a sequence-classification head; 0: there is none."""

    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    init_std: float = 0.02
    """Standard deviation of new weights; those that write to the residual stream get
    ``init_std / sqrt(2 * num_layers)`` (THUDM/GLM mpu/transformer.py)."""

    special: SpecialTokens = SpecialTokens()
    stop_ids: tuple[int, ...] = ()
    name: str = dataclasses.field(default="", compare=False)
    hf_extras: str = dataclasses.field(default="", compare=False, repr=False)
    """JSON of the released ``config.json`` entries that do not describe the network."""

    def __post_init__(self) -> None:
        sizes = "vocab_size num_layers embed_dim num_heads num_kv_heads head_dim mlp_dim"
        for field in (*sizes.split(), "max_seq_len"):
            if type(getattr(self, field)) is not int or getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)!r}; it must be at least 1")
        for field in ("norm_eps", "rope_theta", "rope_fraction"):
            value = getattr(self, field)
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ValueError(f"{field} is {value!r}; it must be a positive number")
        if self.num_labels < 0:
            raise ValueError(f"num_labels is {self.num_labels}; it must not be negative")
        columns = self.embed_dim, self.head_dim, self.mlp_dim
        if self.quantization == "int4" and any(size % 2 for size in columns):
            raise ValueError(
                "int4 keeps two columns in a byte: embed_dim, head_dim and mlp_dim must be even, "
                f"they are {', '.join(map(str, columns))}"
            )
        self._check_groups()
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        for field, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, field) not in get_args(hint):
                allowed = ", ".join(get_args(hint))
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose one of {allowed}")
        if self.position == "rotary" and self.rope_dim % 2:
            raise ValueError(
                f"rope_fraction {self.rope_fraction} of a head of {self.head_dim} turns "
                f"{self.rope_dim} dimensions; they must be an even number"
            )

    def _check_groups(self) -> None:
        group = self.quant_group
        columns = self.embed_dim, self.num_heads * self.head_dim, self.mlp_dim
        if group and (self.quantization == "none" or group < 2 or group % 2):
            raise ValueError(
                f"quant_group is {group} with quantization {self.quantization!r}; it is an even "
                "number of columns of int8 or int4 weights, or 0"
            )
        if group and any(size % group for size in columns):
            raise ValueError(
                f"quant_group {group} does not divide embed_dim, heads and mlp_dim: "
                f"{', '.join(map(str, columns))}"
            )

    @property
    def rope_dim(self) -> int:
        """Dimensions turned by each position row."""
        return int(self.head_dim // (2 if self.rope_2d else 1) * self.rope_fraction)

    @property
    def gated_mlp(self) -> bool:
        return self.activation == "swiglu"

    def replace(self, **changes: Any) -> GLMConfig:
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> GLMConfig:
        """The config that a released ``config.json`` describes (see ``glm_jax.hf_config``)."""
        from glm_jax import hf_config

        return hf_config.from_hf(config)

    def to_hf(self, layout: Literal["original", "transformers"] = "original") -> dict[str, Any]:
        """The ``config.json`` of the released code, or of Transformers' ``GlmForCausalLM``."""
        from glm_jax import hf_config

        return hf_config.to_hf(self, layout)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> GLMConfig:
        """Inverse of ``to_json``.

        Raises:
          ValueError: not JSON, or fields missing, unknown or of a wrong value.
        """
        fields = json.loads(text)
        names = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(names))
        missing = sorted(
            n for n, f in names.items() if f.default is dataclasses.MISSING and n not in fields
        )
        if unknown or missing:
            raise ValueError(f"config has unknown fields {unknown} and lacks {missing}")
        fields["special"] = SpecialTokens(**fields.get("special", {}))
        fields["stop_ids"] = tuple(fields.get("stop_ids", ()))
        return cls(**fields)


def preset(name: str) -> GLMConfig:
    """The config of a released model, such as ``preset("chatglm2-6b")``.

    Raises:
      KeyError: no such preset; the message lists those there are.
    """
    from glm_jax.presets import PRESETS

    if name not in PRESETS:
        raise KeyError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def _matmul_params_per_layer(config: GLMConfig) -> int:
    qkv = config.embed_dim * config.head_dim * (config.num_heads + 2 * config.num_kv_heads)
    out = config.num_heads * config.head_dim * config.embed_dim
    mlp = config.embed_dim * config.mlp_dim * (3 if config.gated_mlp else 2)
    return qkv + out + mlp


def num_params(config: GLMConfig) -> int:
    """Number of distinct parameters: a tied head counts once, buffers such as ``inv_freq`` never.

    Summed from the released state dicts (``architectures.md``, section H); ChatGLM-6B's files hold
    its tied head twice, so they hold ``vocab_size * embed_dim`` numbers more than this.
    """
    d, heads = config.embed_dim, config.num_heads + 2 * config.num_kv_heads
    per_layer = _matmul_params_per_layer(config)
    per_norm = d * (2 if config.norm == "layernorm" else 1)
    per_layer += 2 * per_norm
    per_layer += heads * config.head_dim if config.qkv_bias else 0
    if config.linear_bias:
        per_layer += d + d + config.mlp_dim * (2 if config.gated_mlp else 1)
    tables = config.vocab_size * d * (1 if config.tied_head else 2)
    if config.position == "learned":
        tables += 2 * (config.max_seq_len + 1) * d
    if config.num_labels:
        tables += config.num_labels * (d + 1)
        tables += d * (d + 1) if config.position == "learned" else 0
    return tables + config.num_layers * per_layer + per_norm


def flops_per_token(config: GLMConfig, seq_len: int, *, backward: bool = True) -> int:
    """Model FLOPs for one token of a row of ``seq_len``: what utilisation is counted against.

    Two per weight of every matrix product (head included, table look-ups not) and four per key and
    query channel, as if each token saw the whole row (PaLM, appendix B); the backward pass counts
    double the forward. Recomputation is not model work and does not count.
    """
    matmuls = config.num_layers * _matmul_params_per_layer(config)
    matmuls += config.vocab_size * config.embed_dim
    attention = 2 * config.num_layers * seq_len * config.num_heads * config.head_dim
    return (3 if backward else 1) * 2 * (matmuls + attention)
