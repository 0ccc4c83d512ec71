"""The GLM family in JAX: blank-infilling pretraining, ChatGLM and GLM-4, made for TPUs.

>>> import glm_jax
>>> model = glm_jax.load("ckpt/", dtype="bfloat16")
>>> tok = glm_jax.load_tokenizer("ckpt/")
>>> [logits] = glm_jax.score(model, [tok.encode("Hello")])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glm_jax.chat import Chat, Message
    from glm_jax.config import GLMConfig, preset
    from glm_jax.errors import UserError
    from glm_jax.loading import load
    from glm_jax.nn import GLM
    from glm_jax.quantization import quantize
    from glm_jax.text import load_tokenizer
    from glm_jax.text.classify import classify
    from glm_jax.text.fill import fill
    from glm_jax.text.generate import generate, stream
    from glm_jax.text.prepare import prepare
    from glm_jax.text.score import score

__version__ = "0.1.0"
__all__ = [
    "GLM",
    "Chat",
    "GLMConfig",
    "Message",
    "UserError",
    "classify",
    "fill",
    "generate",
    "load",
    "load_tokenizer",
    "prepare",
    "preset",
    "quantize",
    "score",
    "stream",
]

# Found when first used: importing JAX and Orbax takes seconds, and not every user needs them.
_HOMES = {
    "Chat": "glm_jax.chat",
    "GLM": "glm_jax.nn",
    "GLMConfig": "glm_jax.config",
    "Message": "glm_jax.chat",
    "UserError": "glm_jax.errors",
    "classify": "glm_jax.text.classify",
    "fill": "glm_jax.text.fill",
    "generate": "glm_jax.text.generate",
    "load": "glm_jax.loading",
    "load_tokenizer": "glm_jax.text",
    "prepare": "glm_jax.text.prepare",
    "preset": "glm_jax.config",
    "quantize": "glm_jax.quantization",
    "score": "glm_jax.text.score",
    "stream": "glm_jax.text.generate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
