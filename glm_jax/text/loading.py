"""Finds out which tokenizer a folder holds, and reads it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glm_jax.config import GLMConfig
from glm_jax.errors import UserError, first_line
from glm_jax.presets import PRESETS
from glm_jax.special import SpecialTokens
from glm_jax.text import trained
from glm_jax.text.base import BaseTokenizer
from glm_jax.text.byte_level import fast_bpe, parse_vocab
from glm_jax.text.chatglm import ChatGLM2Tokenizer, ChatGLM3Tokenizer, ChatGLMTokenizer
from glm_jax.text.glm import (
    GLMBertTokenizer,
    GLMChineseTokenizer,
    GLMGPT2Tokenizer,
    GLMRobertaTokenizer,
)
from glm_jax.text.glm4 import GLM4Tokenizer
from glm_jax.text.pieces import PieceModel
from glm_jax.text.trained import SentencePieceTokenizer


@dataclasses.dataclass(frozen=True)
class _Release:
    """How to read one kind of released tokenizer.

    Attributes:
      files: names in its folder; of the alternatives the first that is there.
      used: ids in use in every release of it, 0 to used - 1.
    """

    make: Callable[..., BaseTokenizer]
    files: tuple[tuple[str, ...], ...]
    used: int


_BPE = (("vocab.json", "merges.txt"),)
_MODEL = (("tokenizer.model",),)
_ICE = (("ice_text.model",),)
_CHATGLM = _Release(ChatGLMTokenizer, _ICE, 130344)
_CHATGLM_V1_0 = _Release(ChatGLMTokenizer, _ICE, 150344)
_CHATGLM2 = _Release(ChatGLM2Tokenizer, _MODEL, 64794)
_CHATGLM3 = _Release(ChatGLM3Tokenizer, _MODEL, 64798)
_GLM4 = _Release(GLM4Tokenizer, (("tokenizer.model",), ("tokenizer.json",)), 151343)
_GPT2 = _Release(GLMGPT2Tokenizer, _BPE, 50266)
_ROBERTA = _Release(GLMRobertaTokenizer, _BPE, 50267)
_BERT = _Release(GLMBertTokenizer, (("vocab.txt",),), 30524)
_CHINESE = _Release(GLMChineseTokenizer, (("cog-pretrain.model",),), 50011)

_RELEASES: dict[str, _Release] = {
    **dict.fromkeys(("glm-base", "glm-large", "glm-doc", "glm-410m", "glm-515m"), _BERT),
    "glm-roberta-large": _ROBERTA,
    **dict.fromkeys(("glm-2b", "glm-10b"), _GPT2),
    **dict.fromkeys(("glm-large-chinese", "glm-10b-chinese"), _CHINESE),
    "chatglm-6b": _CHATGLM,
    "chatglm-6b-v1.0": _CHATGLM_V1_0,
    **dict.fromkeys(("chatglm2-6b", "chatglm2-6b-32k"), _CHATGLM2),
    **dict.fromkeys((name for name in PRESETS if name.startswith("chatglm3-6b")), _CHATGLM3),
    **dict.fromkeys((name for name in PRESETS if name.startswith("glm-4-9b")), _GLM4),
}
FAMILIES = tuple(_RELEASES)


def load_tokenizer(directory: str | Path, family: str | None = None) -> BaseTokenizer:
    """The tokenizer of a model directory, or of a folder of tokenizer files.

    Args:
      directory: a model directory of this library (its ``tokenizer`` folder, with the family of
        ``generation.json`` and the vocabulary of ``config.json``), a folder of a release's
        tokenizer files, or one that ``python -m train.tokenizer`` wrote.
      family: a name of ``FAMILIES``, where the files do not tell.

    Raises:
      UserError: a file is missing or damaged, the family is unknown or not that of the files, or
        the files would suit several families.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is no folder; give a model directory or tokenizer files")
    config = None
    if (directory / "tokenizer").is_dir():
        family = family or _stated_family(directory / "generation.json")
        config = _model_config(directory / "config.json")
        directory = directory / "tokenizer"
    if _is_trained(directory):
        return _load_trained(directory)
    if family is not None and family not in _RELEASES:
        raise UserError(f"family {family!r} is unknown; choose one of {', '.join(FAMILIES)}")
    return _load_release(directory, family or _guess_family(directory), config)


def _load_release(folder: Path, family: str, config: GLMConfig | None) -> BaseTokenizer:
    release, preset = _RELEASES[family], PRESETS[family]
    names = _files_of(folder, family)
    shown = f"{folder}/{' and '.join(names)}"
    rows = preset.vocab_size if config is None else config.vocab_size
    options: dict[str, Any] = {"family": family, "vocab_size": rows}
    if config is not None and release is _CHINESE:
        options["fixed"] = config.special.gmask != config.special.eop
    contents = [_read(folder / name) for name in names]
    try:
        tokenizer = release.make(*contents, **options)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{shown}: {_said(error)}; copy {family}'s files again") from error
    # A model of someone's own may have other tokens, and its config says how many.
    if tokenizer.used != release.used and rows == preset.vocab_size:
        raise UserError(
            f"{shown} gives {tokenizer.used} ids where {family}'s gives {release.used}: "
            "it is cut short or another family's; copy it again, or pass the right family="
        )
    return tokenizer


def _files_of(folder: Path, family: str) -> tuple[str, ...]:
    choices = _RELEASES[family].files
    for names in choices:
        if all((folder / name).is_file() for name in names):
            return names
    missing = [[name for name in names if not (folder / name).is_file()] for names in choices]
    needed = " and no ".join(" and ".join(names) for names in missing)
    raise UserError(f"{folder} has no {needed}: {family}'s tokenizer is made of it")


def _guess_family(folder: Path) -> str:
    """The family that the files tell; one of several whose tokenizers are the same."""
    found = [name for name in _GUESSES if (folder / name).is_file()]
    if not found:
        raise UserError(
            f"{folder}/{trained.META_FILE} is missing, and so is every file of a release "
            f"({', '.join(_GUESSES)}); python -m train.tokenizer makes a tokenizer"
        )
    path = folder / found[0]
    try:
        family = _GUESSES[found[0]](folder, _read(path))
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: {_said(error)}; copy it again") from error
    if family is None:
        raise UserError(f"{path} is of no family that is known; pass one of {', '.join(FAMILIES)}")
    return family


def _guess_ice(folder: Path, content: bytes) -> str:
    return "chatglm-6b" if "[gMASK]" in PieceModel(content) else "chatglm-6b-v1.0"


def _guess_bpe(folder: Path, content: bytes) -> str | None:
    vocab = parse_vocab(content)
    if "<mask>" in vocab:
        return "glm-roberta-large"
    return "glm-10b" if "<|endoftext|>" in vocab else None


def _guess_model(folder: Path, content: bytes) -> str | None:
    """ChatGLM2's file and ChatGLM3's are the same bytes: only what lies beside them tells."""
    first, _, rest = content.partition(b"\n")
    if rest and len(first.split()) == 2 and first.split()[1] == b"0":
        return "glm-4-9b"
    PieceModel(content)
    told = b""
    for name in ("tokenizer_config.json", "config.json"):
        if (folder / name).is_file():
            told += _read(folder / name).lower()
    families = [f for f in ("chatglm2-6b", "chatglm3-6b") if f[:8].encode() in told]
    if b"<|assistant|>" in told:
        families = ["chatglm3-6b"]
    if len(families) == 1:
        return families[0]
    raise UserError(
        f"{folder}/tokenizer.model suits chatglm2-6b and chatglm3-6b, and nothing beside it tells "
        "which: pass family="
    )


def _guess_fast(folder: Path, content: bytes) -> str | None:
    _, _, names = fast_bpe(content)
    return "glm-4-9b" if {"[gMASK]", "<|assistant|>"} <= set(names) else None


_GUESSES: dict[str, Callable[[Path, bytes], str | None]] = {
    "ice_text.model": _guess_ice,
    "cog-pretrain.model": lambda folder, content: "glm-10b-chinese",
    "tokenizer.model": _guess_model,
    "vocab.json": _guess_bpe,
    "vocab.txt": lambda folder, content: "glm-large",
    "tokenizer.json": _guess_fast,
}


def _said(error: Exception) -> str:
    """The words of this error, not of what caused it."""
    return " ".join(str(error).split())[:200]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error


def _stated_family(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        family = json.loads(_read(path)).get("family")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is no JSON object: {first_line(error)}") from error
    return family if family in _RELEASES else None


def _model_config(path: Path) -> GLMConfig | None:
    if not path.is_file():
        return None
    try:
        return GLMConfig.from_json(_read(path).decode())
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a GLMConfig: {first_line(error)}") from error


def _is_trained(folder: Path) -> bool:
    """Whether ``tokenizer.json`` is ours: Hugging Face's ``tokenizers`` uses the same name."""
    path = folder / trained.META_FILE
    return path.is_file() and b'"kind"' in _read(path)[:1000]


def _load_trained(folder: Path) -> SentencePieceTokenizer:
    path = folder / trained.META_FILE
    model = _read(folder / trained.MODEL_FILE)
    try:
        meta = json.loads(_read(path))
        if meta["kind"] != trained.KIND:
            raise UserError(f"{path}: kind {meta['kind']!r} is not {trained.KIND}")
        if hashlib.sha256(model).hexdigest() != meta["model_sha256"]:
            raise UserError(f"{folder / trained.MODEL_FILE} is damaged: not what {path} was for")
        return SentencePieceTokenizer(model, SpecialTokens(**meta["special"]), meta["vocab_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: not a readable tokenizer ({error!r})") from error
