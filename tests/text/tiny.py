"""Tokenizers of a few hundred pieces, made in the way of each release."""

from __future__ import annotations

import base64
import functools
import io
import json

import sentencepiece as spm
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from glm_jax.text.byte_level import bytes_of
from glm_jax.text.chatglm import _ADDED
from glm_jax.text.glm4 import NAMES, PATTERN
from glm_jax.text.pieces import PieceModel

WORDS = "the file reads writes closes opens a buffer stream socket model it's don't we've naïve"
TEXTS = [
    f"The {a}  {b}, and {b}ing the {a}: 晚上{i}睡不着应该怎么办？\n\tif {a} == {i}:  return"
    for i, (a, b) in enumerate((a, b) for a in WORDS.split() for b in WORDS.split())
]


def _train(**options) -> bytes:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, minloglevel=2, num_threads=1, **options
    )
    return model.getvalue()


@functools.cache
def chatglm_v1_0() -> bytes:
    """ice_text.model of ChatGLM-6B v1.0: NFKC, no bytes, no command tokens."""
    return _train(vocab_size=150, user_defined_symbols=["<n>"], pad_id=3, character_coverage=0.98)


@functools.cache
def chatglm() -> bytes:
    """ice_text.model of ChatGLM-6B v1.1: the same with all pieces in the file."""
    return PieceModel(chatglm_v1_0(), _ADDED).sp.serialized_model_proto()


@functools.cache
def chatglm2() -> bytes:
    """tokenizer.model of ChatGLM2 and ChatGLM3: nothing normalised, bytes for what has no piece."""
    return _train(
        model_type="bpe", vocab_size=420, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=0.98,
    )  # fmt: skip


@functools.cache
def chinese() -> bytes:
    """cog-pretrain.model: NFKC, and what has no piece is unknown."""
    return _train(model_type="bpe", vocab_size=150, user_defined_symbols=["<n>"],
                  character_coverage=0.98)  # fmt: skip


@functools.cache
def _bpe() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Byte-level tokens, the 256 bytes first, and the merges that make the others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = tuple((a, b) for a, b in model["merges"])
    return tuple(sorted(model["vocab"], key=model["vocab"].__getitem__)), merges


def merges() -> bytes:
    """merges.txt."""
    return ("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in _bpe()[1])).encode()


def gpt2_vocab() -> bytes:
    """vocab.json of GLM-10B."""
    return json.dumps({t: i for i, t in enumerate([*_bpe()[0], "<|endoftext|>"])}).encode()


def roberta_vocab() -> bytes:
    """vocab.json of GLM-RoBERTa."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *_bpe()[0], "<|endoftext|>", "<mask>"]
    return json.dumps({token: i for i, token in enumerate(tokens)}).encode()


def ranks() -> bytes:
    """tokenizer.model of GLM-4."""
    lines = (b"%s %d\n" % (base64.b64encode(bytes_of(t)), i) for i, t in enumerate(_bpe()[0]))
    return b"".join(lines)


@functools.cache
def fast() -> bytes:
    """tokenizer.json of GLM-4 as Transformers writes it, with the same tokens."""
    tokens, merges = _bpe()
    table = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(table, list(merges), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(NAMES))
    return tokenizer.to_str().encode()


def bert_vocab() -> bytes:
    """vocab.txt of GLM-Large."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    marks = ".?!,:;='\"()[]<>|晚上睡"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *marks, *letters]
    tokens += [f"##{letter}" for letter in letters] + ["the", "file", "##ing", "don", "##'x"]
    return "".join(f"{token}\n" for token in tokens).encode()
