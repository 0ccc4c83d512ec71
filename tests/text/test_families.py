"""Each release's layout of special tokens, pairs and blanks, on tiny tokenizers."""

from __future__ import annotations

import pytest

from glm_jax.text import GLM4Tokenizer
from tests.text import tiny
from tests.text.every import TINY, tiny_tokenizer

CHATGLM2_NAMES = ("[gMASK]", "sop")


def text_ids(tok, *texts):
    return [tok.encode(text, add_special_tokens=False) for text in texts]


@pytest.mark.parametrize("name", TINY)
def test_names_and_roles_agree(name):
    tok = tiny_tokenizer(name)
    ids = tok.special_ids
    roles = {"mask": "[MASK]", "smask": "[sMASK]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]"}
    for role, spelled in roles.items():
        if spelled in ids and getattr(tok.special, role) is not None:
            assert getattr(tok.special, role) == ids[spelled]
    for role in ("sop", "eop"):
        spelled = {"sop": ("<|startofpiece|>", "<sop>"), "eop": ("<|endofpiece|>", "<eop>")}[role]
        assert getattr(tok.special, role) in [ids.get(n) for n in (*spelled, role)]


@pytest.mark.parametrize("name", ["glm-10b", "glm-10b-chinese", "trained"])
def test_glm(name):
    tok = tiny_tokenizer(name)
    s, (the, file) = tok.special, text_ids(tok, "the", "file")
    assert tok.encode("the") == [s.cls, *the, s.eos]
    assert tok.encode_blanks("the [MASK]file") == [s.cls, *the, s.mask, *file, s.eos]
    assert tok.encode_blanks("[sMASK][gMASK]") == [s.cls, s.smask, s.gmask, s.eos]
    with pytest.raises(ValueError, match="joins no pairs"):
        tok.encode("the", "file")


@pytest.mark.parametrize(("name", "seps"), [("glm-large", 1), ("glm-roberta-large", 2)])
def test_bert_and_roberta(name, seps):
    tok = tiny_tokenizer(name)
    s, (the, file) = tok.special, text_ids(tok, "the", "file")
    assert tok.encode("the", "file") == [s.cls, *the, *[s.sep] * seps, *file, s.sep]
    assert tok.encode("the", "file", add_special_tokens=False) == [*the, *file]
    assert tok.encode_blanks("the [MASK]") == [s.cls, *the, s.mask, s.sep]
    with pytest.raises(ValueError, match="this vocabulary has no gmask token"):
        tok.encode_blanks("the [gMASK]")


def test_chatglm():
    tok = tiny_tokenizer("chatglm-6b")
    s, (the, file) = tok.special, text_ids(tok, "the", "file")
    assert tok.encode("the") == [*the, s.gmask, s.sop]
    assert tok.encode("the", "file") == [*the, s.gmask, s.sop, *file, s.eop]
    assert tok.encode_blanks("the [MASK]file") == [*the, s.mask, *file, s.sop]
    assert tok.encode("") == [s.gmask, s.sop]


def test_chatglm_v1_0():
    tok, later = tiny_tokenizer("chatglm-6b-v1.0"), tiny_tokenizer("chatglm-6b")
    s, (the, file) = tok.special, text_ids(tok, "the", "file")
    assert the == [index + 20000 for index in text_ids(later, "the")[0]]
    assert s.eos == tok.special_ids["</s>"] == 20002
    assert tok.encode("the", "file") == [*the, s.gmask, s.sop, *file, s.eop]
    assert tok.encode_blanks("the [MASK]") == [*the, s.mask, s.sop]
    assert tok.encode_blanks("the [MASK]file") == [*the, s.mask, *file, s.eos, s.sop]
    assert tok.decode([5, 19999, *the]) == "the"  # image tokens


def test_chatglm_keeps_whitespace():
    tok = tiny_tokenizer("chatglm-6b")
    text = "a\n\tb" + " " * 83 + "c"
    (ids,) = text_ids(tok, text)
    assert tok.decode(ids) == text
    assert [tok.token_bytes(i) for i in ids if tok.token_bytes(i).isspace()][-2:] == [
        b" " * 80, b" " * 3,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["chatglm2-6b", "chatglm3-6b", "glm-4-9b"])
def test_later_chatglms(name):
    tok = tiny_tokenizer(name)
    s, (the, file) = tok.special, text_ids(tok, "the", "file")
    assert tok.encode("the") == [s.gmask, s.sop, *the]
    assert tok.encode("the", "file") == [s.gmask, s.sop, *the, *file, s.eos]


def test_special_tokens_as_text():
    shown = {
        "chatglm2-6b": ("the", "the"),
        "chatglm3-6b": ("[gMASK]sop the", "[gMASK]sop the"),
        "glm-4-9b": ("[gMASK] <sop> the", "the"),
        "glm-10b": ("[CLS]the<|endoftext|>", "the"),
        "glm-10b-chinese": ("[CLS] the<|endoftext|>", "the"),
        "glm-large": ("[CLS] the [SEP]", "the"),
        "glm-roberta-large": ("<s>the</s>", "the"),
        "chatglm-6b": ("the", "the"),
        "trained": ("the", "the"),
    }
    for name, expected in shown.items():
        tok = tiny_tokenizer(name)
        ids = tok.encode("the")
        assert (tok.decode(ids), tok.decode(ids, skip_special_tokens=True)) == expected, name


def test_names_are_read_where_asked():
    tok = tiny_tokenizer("glm-4-9b")
    user = tok.special_ids["<|user|>"]
    read = tok.encode("<|user|> the", add_special_tokens=False, allow_special=True)
    assert read == [user, *text_ids(tok, " the")[0]]
    tok = tiny_tokenizer("chatglm3-6b")
    read = tok.encode("[MASK]<|user|>", add_special_tokens=False, allow_special=True)
    assert read == [*text_ids(tok, "[MASK]")[0], tok.special_ids["<|user|>"]]
    tok = tiny_tokenizer("glm-10b")  # masks swallow the blanks before them, others do not
    read = tok.encode("the \n[MASK]", add_special_tokens=False, allow_special=True)
    assert read == [*text_ids(tok, "the")[0], tok.special.mask]
    read = tok.encode("the [SEP]", add_special_tokens=False, allow_special=True)
    assert read == [*text_ids(tok, "the ")[0], tok.special.sep]


@pytest.mark.parametrize("name", ["chatglm2-6b", "chatglm-6b"])
def test_who_never_reads_names_says_so(name):
    with pytest.raises(ValueError, match="reads no special tokens in a text; put their ids"):
        tiny_tokenizer(name).encode("a sophist", allow_special=True)


def test_unfixed_chinese_commands():
    fixed = tiny_tokenizer("glm-10b-chinese")
    unfixed = tiny_tokenizer("glm-10b-chinese, unfixed")
    assert unfixed.special.gmask == unfixed.special.eop == fixed.special.eop
    assert unfixed.special.dblock == fixed.special.gmask
    assert unfixed.decode([unfixed.special.gmask]) == "<|endofpiece|>"
    assert unfixed.fingerprint != fixed.fingerprint


@pytest.mark.parametrize("text", tiny.TEXTS[:5])
def test_both_files_of_glm4_are_one_tokenizer(text):
    ranks, fast = tiny_tokenizer("glm-4-9b"), tiny_tokenizer("glm-4-9b, tokenizer.json")
    assert ranks.special_ids == fast.special_ids
    assert ranks.encode(text) == fast.encode(text)
    assert ranks.decode(ranks.encode(text)) == fast.decode(ranks.encode(text))


def test_too_small_a_vocabulary():
    with pytest.raises(ValueError, match="vocab_size 300 is less than the 414 ids in use"):
        GLM4Tokenizer(tiny.ranks(), vocab_size=300)
