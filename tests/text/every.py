"""Every tokenizer: tiny ones made here, and the released ones where they are."""

from __future__ import annotations

import functools
import pathlib

import pytest

from glm_jax import text
from glm_jax.text.base import BaseTokenizer
from tests.text import tiny
from tests.text.test_tokenizer import TEXTS

SHARED = pathlib.Path(__file__).resolve().parents[2].parent / "shared"
RELEASED = (
    "glm-10b", "glm-large", "glm-roberta-large", "glm-10b-chinese",
    "chatglm-6b", "chatglm-6b-v1.0", "chatglm2-6b", "chatglm3-6b", "glm-4-9b",
)  # fmt: skip
_TINY = {
    "glm-10b": lambda: text.GLMGPT2Tokenizer(tiny.gpt2_vocab(), tiny.merges()),
    "glm-roberta-large": lambda: text.GLMRobertaTokenizer(tiny.roberta_vocab(), tiny.merges()),
    "glm-large": lambda: text.GLMBertTokenizer(tiny.bert_vocab()),
    "glm-10b-chinese": lambda: text.GLMChineseTokenizer(tiny.chinese()),
    "glm-10b-chinese, unfixed": lambda: text.GLMChineseTokenizer(tiny.chinese(), fixed=False),
    "chatglm-6b": lambda: text.ChatGLMTokenizer(tiny.chatglm()),
    "chatglm-6b-v1.0": lambda: text.ChatGLMTokenizer(tiny.chatglm_v1_0(), "chatglm-6b-v1.0"),
    "chatglm2-6b": lambda: text.ChatGLM2Tokenizer(tiny.chatglm2()),
    "chatglm3-6b": lambda: text.ChatGLM3Tokenizer(tiny.chatglm2()),
    "glm-4-9b": lambda: text.GLM4Tokenizer(tiny.ranks()),
    "glm-4-9b, tokenizer.json": lambda: text.GLM4Tokenizer(tiny.fast()),
    "trained": lambda: text.train_sentencepiece(TEXTS, 512),
}
TINY = tuple(_TINY)
ALL = (*(f"tiny {name}" for name in TINY), *RELEASED)


@functools.cache
def tiny_tokenizer(name: str) -> BaseTokenizer:
    return _TINY[name]()


@functools.cache
def _released(name: str) -> BaseTokenizer:
    return text.load_tokenizer(SHARED / "tokenizers" / name)


def released_tokenizer(name: str) -> BaseTokenizer:
    """A released tokenizer; skips the test where its files are absent."""
    if not (SHARED / "tokenizers" / name).is_dir():
        pytest.skip(f"the released tokenizer files of {name} are not beside this checkout")
    return _released(name)


def any_tokenizer(name: str) -> BaseTokenizer:
    kind, _, rest = name.partition(" ")
    return tiny_tokenizer(rest) if kind == "tiny" else released_tokenizer(name)
