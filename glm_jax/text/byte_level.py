"""Byte-level BPE through Hugging Face's ``tokenizers``, and GPT-2's letters for bytes."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

# Tokens that are no merge's: special ones, and those that fill up RoBERTa's vocabulary.
_NAME = re.compile(r"<.*>|madeupword\d+")


@functools.cache
def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def bytes_of(token: str) -> bytes:
    """The bytes of a token; a name written in other letters stands for itself."""
    table = _byte_of()
    if all(letter in table for letter in token):
        return bytes(table[letter] for letter in token)
    return token.encode()


def parse_vocab(content: bytes) -> dict[str, int]:
    """``vocab.json``: tokens and their ids, 0 to n - 1.

    Raises:
      ValueError: it is something else.
    """
    vocab = json.loads(content)
    if not isinstance(vocab, dict) or sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError("not a vocabulary: it should map n tokens to the ids 0 to n - 1")
    return vocab


def parse_merges(content: bytes) -> list[tuple[str, str]]:
    """``merges.txt``: two tokens per line, the oldest merge first.

    Raises:
      ValueError: it is something else.
    """
    merges = []
    for number, line in enumerate(content.decode("utf-8").split("\n"), 1):
        if line.startswith("#version") or not line.strip():
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(pair):
            raise ValueError(f"line {number} is {line[:40]!r}, not two tokens with a blank between")
        merges.append((pair[0], pair[1]))
    return merges


def gpt2_bpe(vocab: Mapping[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """GPT-2's BPE without its special tokens.

    Raises:
      ValueError: a merge is not of tokens of the vocabulary, or merges are missing.
    """
    _check(vocab, merges)
    made = {a + b for a, b in merges}
    if lost := [t for t in vocab if len(t) > 1 and t not in made and not _NAME.fullmatch(t)]:
        raise ValueError(f"no merge makes {lost[0]!r} ({len(lost)} such tokens): lines are missing")
    tokenizer = Tokenizer(models.BPE(dict(vocab), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    return tokenizer


def _check(vocab: Mapping[str, int], merges: list[tuple[str, str]]) -> None:
    # Here, because tokenizers panics or drops letters where these do not hold.
    if missing := [letter for letter in _byte_of() if letter not in vocab]:
        raise ValueError(f"the vocabulary of {len(vocab)} tokens lacks {len(missing)} bytes")
    for a, b in merges:
        if a not in vocab or b not in vocab or a + b not in vocab:
            raise ValueError(f"the merge {a!r} {b!r} is not of tokens of the vocabulary")


def fast_bpe(content: bytes) -> tuple[Tokenizer, dict[str, int], dict[str, int]]:
    """A ``tokenizer.json`` without the special tokens, its vocabulary, and the special tokens' ids.

    ``tokenizers`` reads special tokens in every text; without them it cannot.

    Raises:
      ValueError: it is no byte-level BPE.
    """
    spec: dict[str, Any] = json.loads(content)
    try:
        added = {token["content"]: int(token["id"]) for token in spec["added_tokens"]}
        kind, vocab = spec["model"]["type"], spec["model"]["vocab"]
        if kind != "BPE":
            raise ValueError(f"its model is {kind}, not BPE")
        merges = [m.split(" ") if isinstance(m, str) else m for m in spec["model"]["merges"]]
        _check(vocab, [(a, b) for a, b in merges])
        spec |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a tokenizer.json of Hugging Face's tokenizers ({error})") from error
    except Exception as error:  # tokenizers raises a bare Exception
        raise ValueError(str(error)) from error
    return tokenizer, {t: i for t, i in vocab.items() if t not in added}, added
