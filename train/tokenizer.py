"""Trains a tokenizer: ``python -m train.tokenizer --output runs/tokenizer``."""

from __future__ import annotations

import dataclasses
import sys
from typing import Literal

import tyro

from glm_jax.data.config import DataConfig
from glm_jax.data.corpus import open_corpus
from glm_jax.errors import UserError
from glm_jax.text.training import train_sentencepiece


@dataclasses.dataclass(frozen=True)
class Args:
    """Trains a SentencePiece tokenizer on a corpus, with GLM's command tokens in their places.

    Writes tokenizer.model and tokenizer.json into a directory, whole or not at all. Every text
    comes back unchanged from encoding and decoding: characters without a piece are spelled in
    bytes.

    Example: python -m train.tokenizer --data.source 'files:corpus/*.jsonl.zst' --output my-tok
    """

    output: str
    """Directory to write; an earlier tokenizer there is replaced."""
    vocab_size: int = 8192
    """Size of the whole vocabulary, command tokens included; a multiple of 128."""
    model_type: Literal["unigram", "bpe"] = "unigram"
    """SentencePiece's algorithm."""
    max_chars: int = 100_000_000
    """Characters of the corpus to learn from."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)


def main(args: Args) -> None:
    """Trains on the training split, writes the directory and prints what it holds.

    Raises:
      UserError: the source or an option is bad.
    """
    corpus = open_corpus(args.data, "train")
    texts = (corpus[i] for i in range(len(corpus)))
    tokenizer = train_sentencepiece(
        texts,
        args.vocab_size,
        args.output,
        model_type=args.model_type,
        max_chars=args.max_chars,
    )
    sample = [corpus[i] for i in range(min(len(corpus), 200))]
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in sample)
    density = sum(len(text.encode()) for text in sample) / max(tokens, 1)
    print(
        f"{args.output}: {tokenizer.num_pieces} pieces, vocabulary {tokenizer.vocab_size}, "
        f"{density:.2f} bytes per token over {len(sample)} documents of {corpus.label}"
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
