"""Text to ids and back."""

from glm_jax.special import SpecialTokens
from glm_jax.text.tokenizer import (
    IncrementalDecoder,
    SentencePieceTokenizer,
    Tokenizer,
    command_tokens,
    load_tokenizer,
)
from glm_jax.text.training import save_atomically, train_sentencepiece

__all__ = [
    "IncrementalDecoder",
    "SentencePieceTokenizer",
    "SpecialTokens",
    "Tokenizer",
    "command_tokens",
    "load_tokenizer",
    "save_atomically",
    "train_sentencepiece",
]
