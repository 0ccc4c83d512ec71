"""Decoding in parts: what the filters hold back, and SentencePiece's own decoder as the oracle."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import example, given

from glm_jax.text.chatglm import _WHITESPACE
from glm_jax.text.decoding import CleanUp, PieceStream, Replace, WordPieceStream, clean_up
from glm_jax.text.pieces import PieceModel
from tests.text import tiny


def in_parts(each, text, cuts):
    bounds = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    parts = [each.push(text[a:b]) for a, b in itertools.pairwise(bounds)]
    return "".join(parts) + each.flush()


CUTS = st.lists(st.integers(0, 40), max_size=40)


def test_clean_up():
    text = "hello , i do n't know : is he ' s ' ? it 's , they 've , we 're , i 'm ."
    assert clean_up(text) == "hello, i don't know : is he's '? it's, they've, we're, i'm."


@given(st.text("  '''.?!,nntsmverx", max_size=40), CUTS)
@example("do n ' t", [4, 6])
@example("x  ' ve", [3, 5])
@example("a ' ' s", [3, 5])
def test_clean_up_in_parts(text, cuts):
    assert in_parts(CleanUp(), text, cuts) == clean_up(text)


def test_clean_up_holds_back_little():
    each = CleanUp()
    parts = [each.push(c) for c in "never seven 's ."]
    assert parts == [
        "n", "e", "v", "e", "r", "", " s", "e", "v", "e", "n", "", "", "'s", "", ".",
    ]  # fmt: skip


@given(st.lists(st.sampled_from([*_WHITESPACE, *"<n>|tab_blank2080", "<|bl", "ank_81|>"])), CUTS)
def test_markers_in_parts(parts, cuts):
    text = expected = "".join(parts)
    for marker, blank in _WHITESPACE.items():
        expected = expected.replace(marker, blank)
    assert in_parts(Replace(_WHITESPACE), text, cuts) == expected


def _decoded(stream, ids):
    return "".join(map(stream.push, ids)) + stream.flush()


@given(st.lists(st.integers(0, 419), max_size=12), st.booleans())
def test_pieces_as_sentencepiece_decodes_them(ids, fallback):
    """Bytes that make no character, blanks at the start, control pieces in between."""
    model = PieceModel(tiny.chatglm2() if fallback else tiny.chatglm())
    assert _decoded(PieceStream(model, {}), ids) == model.sp.decode(ids)


def test_shared_oracle_is_not_trivial():
    model = PieceModel(tiny.chatglm2())
    broken = [model.sp.piece_to_id(f"<0x{b:02X}>") for b in (0xE4, 0xB8)]
    ids = [*broken, 1, *model.encode("the file")]
    assert model.sp.decode(ids) == _decoded(PieceStream(model, {}), ids) == "\ufffd\ufffd the file"


def test_word_pieces():
    tokens = ["##ing", "the", "##n", "<|x|>", "##y", "!"]
    stream = WordPieceStream(tokens.__getitem__, {3: "<|x|>"})
    assert _decoded(stream, range(6)) == "##ing then <|x|> ##y !"
