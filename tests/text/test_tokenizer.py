"""The SentencePiece tokenizer: lossless, deterministic, command tokens out of a text's reach."""

import itertools
import pickle

import pytest

from glm_jax.errors import UserError
from glm_jax.text import (
    IncrementalDecoder,
    SentencePieceTokenizer,
    command_tokens,
    load_tokenizer,
    train_sentencepiece,
)

STEMS = ("fil", "sock", "arch", "buff", "stream", "mod", "pars", "writ", "read", "clos", "load")
ENDS = ("e", "er", "ing", "ed", "es", "able", "ion", "or", "ive", "al", "ment", "ness", "ly", "ful")
TEXTS = [f"The {s}{e} of un{t}{e} number {i} is re{s}{e}; why?\nIt was {t}{f}."
         for i, (s, e) in enumerate(itertools.product(STEMS, ENDS))
         for t in STEMS for f in ENDS[:4]]  # fmt: skip
HARD = "Größe 漢字 😀 \r\n\t two  blanks\n\n\n\x00 <|endoftext|> [MASK] \u2028end "


def plain(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(TEXTS, 512)


def test_command_tokens_follow_the_pieces(tokenizer):
    n = tokenizer.num_pieces
    assert n == 512 - 11
    s = tokenizer.special
    assert (s.pad, s.eos, s.sep, s.cls, s.mask, s.unk) == (n, n, n + 1, n + 2, n + 3, n + 4)
    assert (s.sop, s.eop, s.smask, s.gmask, s.dblock) == (n + 6, n + 7, n + 8, n + 9, n + 10)
    assert tokenizer.vocab_size == 512


def test_glm_large_chinese_has_this_order():
    s = command_tokens(50000)  # spec 1.1, with fix_command_token
    assert (s.eos, s.sep, s.cls, s.mask, s.unk) == (50000, 50001, 50002, 50003, 50004)
    assert (s.sop, s.eop, s.smask, s.gmask, s.dblock) == (50006, 50007, 50008, 50009, 50010)


@pytest.mark.parametrize("text", [*TEXTS[:3], HARD, "", " ", "\n"])
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_text_gives_a_command_token(tokenizer):
    ids = plain(tokenizer, HARD + "[gMASK][sMASK]<|startofpiece|>")
    assert max(ids) < tokenizer.num_pieces
    cls, eos = tokenizer.special.cls, tokenizer.special.eos
    assert tokenizer.encode(HARD) == [cls, *plain(tokenizer, HARD), eos]
    assert tokenizer.encode("[MASK]", add_special_tokens=False, allow_special=True) == [
        tokenizer.special.mask
    ]


def test_lone_surrogates_become_replacement_characters(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b \ud83d\ude00")) == "a\ufffdb 😀"


def test_blanks_swallow_the_blanks_before_them(tokenizer):
    ids = tokenizer.encode_blanks("The file [MASK] of [gMASK] it", add_special_tokens=False)
    s = tokenizer.special
    expected = [*plain(tokenizer, "The file"), s.mask, *plain(tokenizer, " of"), s.gmask]
    assert ids == [*expected, *plain(tokenizer, " it")]
    assert tokenizer.encode_blanks("a[MASK]") == [s.cls, *plain(tokenizer, "a"), s.mask, s.eos]
    assert tokenizer.decode(ids) == "The file of it"


def test_incremental_decoding_never_breaks_a_character(tokenizer):
    ids = tokenizer.encode(HARD)
    decoder = IncrementalDecoder(tokenizer)
    parts = [decoder.push([i]) for i in ids]
    assert "".join(parts) + decoder.flush() == HARD
    assert not any("\ufffd" in part for part in parts)
    cut = plain(tokenizer, "😀")[:-1]
    assert decoder.push(cut) == ""
    assert decoder.flush() == "\ufffd"


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    with pytest.raises(ValueError, match="id 512 is outside the vocabulary of 512"):
        tokenizer.decode([512])
    with pytest.raises(ValueError, match="id -1"):
        tokenizer.decode([-1])


def test_sentence_ends(tokenizer):
    ends = tokenizer.sentence_ends
    assert ends.shape == (512,)
    assert not ends[tokenizer.num_pieces :].any()
    for mark in ".?;\n":
        assert ends[plain(tokenizer, mark)].all()
    assert not ends[plain(tokenizer, "file")].any()


def test_training_is_deterministic(tokenizer):
    assert train_sentencepiece(iter(TEXTS), 512).fingerprint == tokenizer.fingerprint
    bpe = train_sentencepiece(TEXTS, 512, model_type="bpe")
    assert bpe.fingerprint != tokenizer.fingerprint
    assert bpe.decode(bpe.encode(HARD)) == HARD


def test_pickle_and_directory(tokenizer, tmp_path):
    train_sentencepiece(TEXTS, 512, tmp_path / "a" / "tok")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["tok"]
    for other in (load_tokenizer(tmp_path / "a" / "tok"), pickle.loads(pickle.dumps(tokenizer))):
        assert other.used == tokenizer.used  # with the command tokens, of which one ends a text
        assert other.fingerprint == tokenizer.fingerprint
        assert other.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    train_sentencepiece(TEXTS, 512, tmp_path / "a" / "tok", model_type="bpe")  # replaces it
    assert load_tokenizer(tmp_path / "a" / "tok").fingerprint != tokenizer.fingerprint


def test_other_directories_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not delete")
    with pytest.raises(UserError, match="is no tokenizer's directory"):
        train_sentencepiece(TEXTS, 512, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_damaged_directories_are_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    train_sentencepiece(TEXTS, 512, tmp_path / "tok")
    model = tmp_path / "tok" / "tokenizer.model"
    model.write_bytes(model.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"tokenizer\.model is damaged"):
        load_tokenizer(tmp_path / "tok")
    (tmp_path / "tok" / "tokenizer.json").write_text('{"kind": "senten')
    with pytest.raises(UserError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path / "tok")
    with pytest.raises(ValueError, match="no SentencePiece model"):
        SentencePieceTokenizer(b"hello")


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (TEXTS, 500, "vocab_size 500 is not a multiple of 128"),
        (TEXTS, 65536, "vocab_size 65536 is too large for this corpus; at most"),
        ([], 512, "no text"),
        (["", "\n"], 512, "no text"),
    ],
)
def test_bad_training_requests(texts, vocab_size, message):
    with pytest.raises(UserError, match=message):
        train_sentencepiece(texts, vocab_size)
