"""The released tokenizers do what the released code did, id for id (shared/golden/tokenizers)."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import pytest

from glm_jax.presets import PRESETS
from tests.text.every import RELEASED, SHARED, released_tokenizer

# Those whose released ``encode`` reads special tokens in a text.
READERS = ("glm-10b", "glm-10b-chinese", "glm-large", "glm-roberta-large", "glm-4-9b")
GLM = ("glm-10b", "glm-10b-chinese")
PADDED = ("chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b")


@functools.cache
def _golden(family: str) -> dict[str, Any]:
    path = SHARED / "golden" / "tokenizers" / f"{family}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def golden(family: str) -> dict[str, Any]:
    if not _golden(family):
        pytest.skip(f"golden/tokenizers/{family}.json is not beside this checkout")
    return _golden(family)


@pytest.mark.parametrize("family", RELEASED)
def test_encode(family):
    tok, reads = released_tokenizer(family), family in READERS
    for case in golden(family)["codec"]:
        text = case["text"]
        ids = tok.encode(text, add_special_tokens=False, allow_special=reads)
        assert ids == case["ids"], text
        assert tok.encode(text, allow_special=reads) == case["ids_special"], text


@pytest.mark.parametrize("family", RELEASED)
def test_decode(family):
    tok = released_tokenizer(family)
    for case in golden(family)["codec"]:
        # v1.0's own code fails for no ids at all.
        decoded = case["decoded"] if isinstance(case["decoded"], str) else ""
        assert tok.decode(case["ids"]) == decoded, case["text"]
        assert tok.decode(case["ids_special"]) == case["decoded_special"]
        assert tok.decode(case["ids_special"], True) == case["decoded_skip_special"]
    for case in golden(family)["decode"]:
        assert tok.decode(case["ids"]) == case["decoded"]
        assert tok.decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special"]


@pytest.mark.parametrize("family", ["glm-4-9b", "chatglm2-6b", "chatglm3-6b"])
def test_text_alone_is_what_the_library_below_gives(family):
    """A chat template's view: names of special tokens in a text are nothing but text."""
    tok, key = released_tokenizer(family), "tiktoken_ids" if family == "glm-4-9b" else "sp_ids"
    for case in golden(family)["codec"]:
        assert tok.encode(case["text"], add_special_tokens=False) == case[key]


def test_chatglm3_reads_its_roles_where_asked():
    tok = released_tokenizer("chatglm3-6b")
    for case in golden("chatglm3-6b")["codec"]:
        ids = tok.encode(case["text"], add_special_tokens=False, allow_special=True)
        assert ids == case["ids_encode_special_tokens_true"]


@pytest.mark.parametrize("family", RELEASED)
def test_special_ids(family):
    tok, listed = released_tokenizer(family), dict(golden(family)["special"])
    counts = listed.pop("vocab_size"), listed.pop("len", None)
    assert tok.vocab_size == PRESETS[family].vocab_size >= tok.used >= max(c or 0 for c in counts)
    for name, index in listed.items():
        if index is not None and name != "bos":
            known = tok.special_ids if name in tok.special_ids else vars(tok.special)
            assert known[name] == index, name


@pytest.mark.parametrize("family", [f for f in RELEASED if f != "glm-10b-chinese"])
def test_special_tokens_are_the_presets(family):
    special = released_tokenizer(family).special
    if family == "chatglm-6b-v1.0":  # its config class says 0, its tokenizer "<pad>"
        assert special.pad == 20003
        special = dataclasses.replace(special, pad=0)
    assert special == PRESETS[family].special


def test_glm_10b_chinese_has_its_gmask_twice():
    """The Hugging Face release has an id of its own for [gMASK]; training had eop's (spec 1.1)."""
    special = PRESETS["glm-10b-chinese"].special
    ours = released_tokenizer("glm-10b-chinese").special
    assert ours == PRESETS["glm-large-chinese"].special
    assert dataclasses.replace(ours, gmask=50007, dblock=50009) == special


@pytest.mark.parametrize("family", PADDED)
def test_padded_batches_hold_what_encode_gives(family):
    """The reference pads on the left; on the right or not at all, the tokens are the same."""
    tok, batch = released_tokenizer(family), golden(family)["padded_batch"]
    for text, row in zip(batch["texts"], batch["input_ids"], strict=True):
        ids = tok.encode(text)
        assert [tok.special.pad] * (len(row) - len(ids)) + ids == row


@pytest.mark.parametrize("family", GLM)
def test_blanks(family):
    tok, cases = released_tokenizer(family), golden(family)
    batch = cases["build_inputs_for_generation"]
    for text, row in zip(batch["texts"], batch["context_ids"], strict=True):
        ids = tok.encode_blanks(text)
        assert ids + [tok.special.pad] * (len(row) - len(ids)) == row
        assert tok.encode(text, allow_special=True) == ids
    batch = cases["build_inputs_for_multiple_choice"]
    for words, expected in zip(batch["choices"], batch["choice_ids"], strict=True):
        assert [tok.encode(word, add_special_tokens=False) for word in words] == expected


def test_chatglm_pairs():
    pair = golden("chatglm-6b")["build_inputs_pair"]
    tok = released_tokenizer("chatglm-6b")
    texts = [tok.decode(pair[part]) for part in "ab"]
    assert tok.encode(texts[0], add_special_tokens=False) == pair["a"]
    assert tok.encode(*texts) == pair["ids"]


# The spec's table 3.2 (li-plus/chatglm.cpp's tests). A chat's pieces are encoded one by one.
def test_ids_of_chatglm():
    assert released_tokenizer("chatglm-6b").encode("你好") == [5, 74874, 130001, 130004]


def test_ids_of_chatglm2():
    tok = released_tokenizer("chatglm2-6b")
    assert tok.encode("你好") == [64790, 64792, 36474, 54591]
    ids = [790, 30951, 517, 30910, 30939, 30996, 13, 13, 54761, 31211, 39701, 13, 13, 55437, 31211]
    assert tok.encode("[Round 1]\n\n问：你好\n\n答：") == [64790, 64792, *ids]


@pytest.mark.parametrize(
    ("family", "ids"),
    [
        ("chatglm3-6b", [64790, 64792, 64795, 30910, 13, 36474, 54591, 64796]),
        ("glm-4-9b", [151331, 151333, 151336, 198, 109377, 151337]),
    ],
)
def test_ids_of_a_user_turn(family, ids):
    tok = released_tokenizer(family)
    newline, query = (tok.encode(t, add_special_tokens=False) for t in ("\n", "你好"))
    user, assistant = tok.special_ids["<|user|>"], tok.special_ids["<|assistant|>"]
    assert [*tok.encode(""), user, *newline, *query, assistant] == ids
