"""Training a SentencePiece model on a corpus."""

from __future__ import annotations

import io
import itertools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import sentencepiece as spm

from glm_jax.errors import UserError
from glm_jax.text.base import VOCAB_MULTIPLE
from glm_jax.text.trained import NUM_COMMANDS, SentencePieceTokenizer

_log = logging.getLogger(__name__)
_MIN_VOCAB = 512  # 256 bytes, the command tokens, and some letters
# One thread would do; more must be a constant, since the sum of their parts depends on the number.
_THREADS = 2


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    path: str | Path | None = None,
    *,
    model_type: Literal["unigram", "bpe"] = "unigram",
    max_chars: int = 100_000_000,
) -> SentencePieceTokenizer:
    """Trains a tokenizer whose ``decode(encode(text)) == text`` for every text.

    Nothing is normalised, bytes stand in for characters without a piece, and the same texts give
    the same model.

    Args:
      vocab_size: of the whole vocabulary, GLM's command tokens included; a multiple of 128.
      path: a directory to write the tokenizer to (whole or not at all); None for none.
      max_chars: where to stop reading texts.

    Raises:
      UserError: there is no text, or vocab_size does not suit it.
    """
    if vocab_size < _MIN_VOCAB or vocab_size % VOCAB_MULTIPLE:
        raise UserError(f"vocab_size {vocab_size} is not a multiple of 128, at least {_MIN_VOCAB}")
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts, max_chars),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size - NUM_COMMANDS,
            character_coverage=0.9995,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=["\n"],
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_id=0,
            max_sentence_length=1 << 16,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError, StopIteration) as error:
        raise UserError(_explain(str(error), vocab_size)) from error
    tokenizer = SentencePieceTokenizer(model.getvalue(), vocab_size=vocab_size)
    if path is not None:
        save_atomically(tokenizer, path)
    return tokenizer


def save_atomically(tokenizer: SentencePieceTokenizer, path: str | Path) -> None:
    """Writes a tokenizer's directory under another name first, so that it is whole or absent.

    Raises:
      UserError: the path exists and holds something else than a tokenizer.
    """
    path = Path(path)
    if path.exists() and {p.name for p in path.iterdir()} - {"tokenizer.model", "tokenizer.json"}:
        raise UserError(f"{path} exists and is no tokenizer's directory; name another one")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o755)
        tokenizer.save(temporary)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _lines(texts: Iterable[str], max_chars: int):
    """Non-empty lines; the newline itself is a piece of its own."""
    total = 0
    for line in itertools.chain.from_iterable(text.split("\n") for text in texts):
        if total >= max_chars:
            _log.warning("the tokenizer learns from the first %d characters only", total)
            return
        if line.strip():
            total += len(line)
            yield line


def _explain(message: str, vocab_size: int) -> str:
    """SentencePiece's message as one line about our options."""
    too_high = re.search(r"value <= (\d+)", message)
    if too_high:
        most = (int(too_high[1]) + NUM_COMMANDS) // VOCAB_MULTIPLE * VOCAB_MULTIPLE
        return f"vocab_size {vocab_size} is too large for this corpus; at most {most}"
    if "sentences_.empty()" in message:
        return "the corpus holds no text to train a tokenizer on"
    return f"SentencePiece could not train {vocab_size} pieces: {' '.join(message.split())}"
