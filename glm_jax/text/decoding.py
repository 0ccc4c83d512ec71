"""Ids to text, one id after another: what each released decoder does, without looking back.

A stream takes ids and gives the text that can no longer change; a filter does the same from text to
text. Whole texts are decoded by the same streams, so the two can never differ.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping
from typing import Protocol

from glm_jax.text.pieces import SPACE, PieceModel

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# SentencePiece writes one replacement character per broken byte, Python one per broken character.
codecs.register_error(
    "glm_jax.per_byte",
    lambda e: (_REPLACEMENT * (e.end - e.start), e.end),  # pyrefly: ignore
)


class Stream(Protocol):
    """Ids in, finished text out."""

    def push(self, index: int) -> str: ...

    def flush(self) -> str: ...


class Filter(Protocol):
    """Text in, finished text out."""

    def push(self, text: str) -> str: ...

    def flush(self) -> str: ...


class Filtered:
    """A stream whose text goes through filters."""

    def __init__(self, stream: Stream, *filters: Filter):
        self._stream, self._filters = stream, filters

    def push(self, index: int) -> str:
        text = self._stream.push(index)
        for each in self._filters:
            text = each.push(text)
        return text

    def flush(self) -> str:
        text = self._stream.flush()
        for each in self._filters:
            text = each.push(text) + each.flush()
        return text


class PieceStream:
    """SentencePiece's decoder.

    Args:
      literal: ids outside the model that are written out, such as ChatGLM3's role tokens; every
        other id outside of it is invisible.
      unknown: what the unknown piece is written as; as the model says by default.
      per_byte: one replacement character per broken byte, as SentencePiece; else per character.
      shift: the id of the model's first piece.
    """

    def __init__(
        self,
        model: PieceModel,
        literal: Mapping[int, str],
        unknown: str | None = None,
        per_byte: bool = True,
        shift: int = 0,
    ):
        self._model, self._literal, self._shift = model, literal, shift
        self._unknown = model.unk_surface if unknown is None else unknown
        self._utf8 = _utf8("glm_jax.per_byte" if per_byte else "replace")
        self._at_start, self._blank_taken, self._written = True, False, False

    def push(self, index: int) -> str:
        piece = index - self._shift
        byte = self._model.byte(piece)
        if byte is not None:
            text = self._utf8.decode(byte)
        else:
            text = self.flush()
            self._at_start &= not (self._blank_taken or self._written or text)
            self._blank_taken = False
            text += self._literal[index] if index in self._literal else self._piece(piece)
        self._written |= bool(text)
        return text

    def _piece(self, index: int) -> str:
        if self._model.is_unknown(index):
            return self._unknown
        piece = self._model.visible(index)
        if self._at_start and self._model.strips_blank and piece.startswith(SPACE):
            # Where blanks at the start were removed when encoding, all are taken away again.
            self._blank_taken = not self._model.strips_all_blanks
            piece = piece[1:]
        return piece.replace(SPACE, " ")

    def flush(self) -> str:
        return _finish(self._utf8)


class ByteStream:
    """Byte-level BPE: tokens are runs of bytes.

    Args:
      token_bytes: the bytes of an ordinary id; none for an id that stands for nothing.
      literal: special ids and their names.
      spaced: a blank stands between a special token and its neighbours (Transformers'
        ``spaces_between_special_tokens``).
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes], literal: Mapping[int, str], spaced: bool = False
    ):
        self._token_bytes, self._literal, self._spaced = token_bytes, literal, spaced
        self._utf8 = _utf8("replace")
        self._after: str | None = None  # "text" or "special"

    def push(self, index: int) -> str:
        name = self._literal.get(index)
        if name is None:
            token = self._token_bytes(index)
            if not token:
                return ""
            blank = " " if self._spaced and self._after == "special" else ""
            self._after = "text"
            return blank + self._utf8.decode(token)
        blank = " " if self._spaced and self._after else ""
        self._after = "special"
        return self.flush() + blank + name

    def flush(self) -> str:
        return _finish(self._utf8)


class WordPieceStream:
    """BERT's decoder: words with a blank between them, ``##`` continues a word.

    Args:
      token: the text of an ordinary id; empty for an id that stands for nothing.
      literal: special ids behind the vocabulary, which no ``##`` continues.
    """

    def __init__(self, token: Callable[[int], str], literal: Mapping[int, str]):
        self._token, self._literal = token, literal
        self._begun, self._continues = False, False

    def push(self, index: int) -> str:
        name = self._literal.get(index)
        token = self._token(index) if name is None else name
        if not token:
            return ""
        if self._continues and name is None and token.startswith("##"):
            return token[2:]
        blank = " " if self._begun else ""
        self._begun, self._continues = True, name is None
        return blank + token

    def flush(self) -> str:
        return ""


# Transformers' clean_up_tokenization, which undoes the blanks of English tokenizers, in its order.
_CLEAN_UPS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
# What the text before a cut may not end with: only behind these can a clean-up reach over the cut,
# be it after blanks between them are gone.
_UNSETTLED = (" ", "'", " n", " v", "'v", " r", "'r")


def clean_up(text: str) -> str:
    """Transformers' ``clean_up_tokenization_spaces``, which most released tokenizers leave on."""
    for old, new in _CLEAN_UPS:
        text = text.replace(old, new)
    return text


class CleanUp:
    """``clean_up`` of a text that comes in parts."""

    def __init__(self):
        # A text may hold a million blanks: what is held back is neither joined nor searched again.
        self._held: list[str] = []
        self._last = ""  # letter of what is held

    def push(self, text: str) -> str:
        near = self._last + text
        cut = len(near)
        while cut > len(self._last) and near.endswith(_UNSETTLED, 0, cut):
            cut -= 1
        cut -= len(self._last)
        if not cut:
            self._held.append(text)
            self._last = near[-1:]
            return ""
        settled = "".join(self._held) + text[:cut]
        self._held, self._last = [text[cut:]], text[cut:][-1:]
        return clean_up(settled)

    def flush(self) -> str:
        text = clean_up("".join(self._held))
        self._held, self._last = [], ""
        return text


class Replace:
    """Puts texts for markers ``<...>`` with nothing but letters, digits, ``|`` and ``_`` inside."""

    def __init__(self, texts: Mapping[str, str]):
        self._texts, self._held = texts, ""

    def push(self, text: str) -> str:
        head, *parts = (self._held + text).split("<")
        done, self._held = [head], ""
        for i, part in enumerate(parts):
            part = "<" + part
            if i == len(parts) - 1 and any(m.startswith(part) for m in self._texts if m != part):
                self._held = part
                break
            name, close, rest = part.partition(">")
            marker = name + close
            done.append(self._texts[marker] + rest if marker in self._texts else part)
        return "".join(done)

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text


def _utf8(errors: str) -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors)


def _finish(decoder: codecs.IncrementalDecoder) -> str:
    """What the bytes so far give at last; the decoder is as new."""
    text = decoder.decode(b"", final=True)
    decoder.reset()
    return text
