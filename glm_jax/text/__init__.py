"""Text to ids and back."""

from glm_jax.special import SpecialTokens
from glm_jax.text.chatglm import ChatGLM2Tokenizer, ChatGLM3Tokenizer, ChatGLMTokenizer
from glm_jax.text.glm import (
    GLMBertTokenizer,
    GLMChineseTokenizer,
    GLMGPT2Tokenizer,
    GLMRobertaTokenizer,
)
from glm_jax.text.glm4 import GLM4Tokenizer
from glm_jax.text.loading import FAMILIES, load_tokenizer
from glm_jax.text.tokenizer import IncrementalDecoder, Tokenizer
from glm_jax.text.trained import SentencePieceTokenizer, command_tokens
from glm_jax.text.training import save_atomically, train_sentencepiece

__all__ = [
    "FAMILIES",
    "ChatGLM2Tokenizer",
    "ChatGLM3Tokenizer",
    "ChatGLMTokenizer",
    "GLM4Tokenizer",
    "GLMBertTokenizer",
    "GLMChineseTokenizer",
    "GLMGPT2Tokenizer",
    "GLMRobertaTokenizer",
    "IncrementalDecoder",
    "SentencePieceTokenizer",
    "SpecialTokens",
    "Tokenizer",
    "command_tokens",
    "load_tokenizer",
    "save_atomically",
    "train_sentencepiece",
]
