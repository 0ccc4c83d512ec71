"""Blanks of a text filled in order, each with the earlier answers in view."""

import builtins

import jax
import pytest

import glm_jax
from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.presets import glm
from glm_jax.text import train_sentencepiece
from glm_jax.text.fill import fill, fill_blanks
from glm_jax.text.generate import generate

TEXTS = [doc for name in dir(builtins) if (doc := getattr(builtins, name).__doc__)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(TEXTS, 512)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = glm("tiny", 1, 16, 2, 64, tokenizer.vocab_size, tokenizer.special)
    return GLM(config.replace(init_std=0.5), jax.random.key(1))


def test_several_blanks(model, tokenizer):
    text = "Of [MASK] words, and [MASK] numbers."
    options = {"max_new_tokens": 5, "vocab_limit": tokenizer.used}
    answers = fill_blanks(model, tokenizer, text, **options)
    assert fill(model, tokenizer, text, **options) == (
        f"Of {answers[0]} words, and {answers[1]} numbers."
    )
    part_a = tokenizer.encode_blanks(text)
    sop = tokenizer.special.sop
    [first] = generate(model, [[*part_a, sop]], **options)
    [second] = generate(model, [[*part_a, sop, *first, sop]], **options)
    assert [tokenizer.decode(ids).strip() for ids in (first, second)] == answers


@pytest.mark.parametrize("kind", ["[sMASK]", "[gMASK]"])
def test_other_kinds_of_blanks(kind, model, tokenizer):
    out = glm_jax.fill(model, tokenizer, f"Some words {kind}", max_new_tokens=4)
    assert out.startswith("Some words ")
    assert kind not in out


def test_errors(model, tokenizer):
    with pytest.raises(UserError, match="has no blank"):
        fill(model, tokenizer, "nothing to do")
    with pytest.raises(UserError, match="two different mask tokens"):
        fill(model, tokenizer, "one [MASK] and [gMASK]")
    causal = GLM(model.config.replace(prefix_lm=False, position="rotary", rope_fraction=1.0),
                 jax.random.key(0))  # fmt: skip
    with pytest.raises(UserError, match="fills no blanks"):
        fill(causal, tokenizer, "one [MASK]")
