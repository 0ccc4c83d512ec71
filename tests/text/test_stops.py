"""What ends an answer, what may not end it yet, and what else is in the batch does not matter."""

from __future__ import annotations

import re

import pytest

import glm_jax
from glm_jax.errors import UserError
from glm_jax.text import decoding_loop
from glm_jax.text.stops import RowStop, StopTexts
from tests.chat.models import tiny_model
from tests.text.every import tiny_tokenizer

NAME = "glm-4-9b"
NEW = 24


@pytest.fixture(scope="module")
def tok():
    return tiny_tokenizer(NAME)


@pytest.fixture(scope="module")
def prompts(tok):
    return [tok.encode("the file"), tok.encode("a longer line of text")]


def write(prompts, **options):
    return glm_jax.generate(
        tiny_model(NAME), prompts, max_new_tokens=NEW, stop_ids=(), temperature=1.0, **options
    )


@pytest.fixture(scope="module")
def answers(prompts):
    return write(prompts, seed=[3, 4])


def test_the_token_that_completes_a_stop_text_is_the_last(tok, prompts, answers):
    stop = re.findall("[a-z]{2}", tok.decode(answers[0]))[0]
    [first, second] = write(prompts, seed=[3, 4], stop=stop, tokenizer=tok)
    assert first == answers[0][: len(first)] and 0 < len(first) < NEW
    assert stop in tok.decode(first)
    assert stop not in tok.decode(first[:-1])
    if stop not in tok.decode(answers[1]):
        assert second == answers[1]


def test_a_text_that_never_comes_stops_nothing(tok, prompts, answers):
    assert write(prompts, seed=[3, 4], stop=["\x00never"], tokenizer=tok) == answers


def test_a_seed_gives_the_same_answer_in_any_company(prompts, answers):
    assert write(prompts[1:], seed=4) == answers[1:]
    assert write([prompts[1], prompts[0], prompts[1]], seed=[9, 3, 4])[1:] == answers


def test_no_stop_id_before_the_least_number_of_tokens(prompts):
    greedy = {"max_new_tokens": NEW, "temperature": 0.0}
    model = tiny_model(NAME)
    [free] = glm_jax.generate(model, prompts[:1], stop_ids=(), **greedy)
    stop = free[2]
    [short] = glm_jax.generate(model, prompts[:1], stop_ids=[stop], **greedy)
    assert short == free[: free.index(stop)]
    [longer] = glm_jax.generate(model, prompts[:1], stop_ids=[stop], min_new_tokens=6, **greedy)
    assert len(longer) >= 6 and stop not in longer
    [beams] = glm_jax.generate(
        model, prompts[:1], stop_ids=[stop], min_new_tokens=6, num_beams=2, **greedy
    )
    assert len(beams) >= 6 and stop not in beams


def test_ids_beyond_the_tokenizer_are_never_chosen(prompts):
    for options in ({"temperature": 5.0, "seed": 1}, {"num_beams": 3}):
        for answer in glm_jax.generate(
            tiny_model(NAME), prompts, max_new_tokens=NEW, stop_ids=(), vocab_limit=40, **options
        ):
            assert len(answer) == NEW and max(answer) < 40


def test_prompts_of_one_bucket_are_compiled_once(prompts):
    glm_jax.generate(tiny_model(NAME), [[5] * 3], max_new_tokens=8)
    before = decoding_loop.write._cache_size(), decoding_loop._read._cache_size()
    for length in (4, 9, 16):
        glm_jax.generate(tiny_model(NAME), [[5] * length], max_new_tokens=8)
    assert (decoding_loop.write._cache_size(), decoding_loop._read._cache_size()) == before


def test_settings_that_do_not_go_together(tok, prompts):
    model = tiny_model(NAME)
    with pytest.raises(UserError, match="pass the tokenizer"):
        glm_jax.generate(model, prompts, stop="x")
    with pytest.raises(UserError, match="beam search has no"):
        glm_jax.generate(model, prompts, stop="x", tokenizer=tok, num_beams=2)
    with pytest.raises(UserError, match="min_new_tokens is -1"):
        glm_jax.generate(model, prompts, min_new_tokens=-1)


def test_a_text_over_two_tokens(tok):
    ids = tok.encode("the file is a file", add_special_tokens=False)
    row = RowStop(tok, ["e fi"])
    row.push(ids)
    assert row.at is not None
    assert "e fi" in tok.decode(ids[: row.at]) and "e fi" not in tok.decode(ids[: row.at - 1])


def test_what_may_begin_a_stop_text_is_held_back():
    texts = StopTexts(["END", "EXIT"])
    assert [texts.push(part) for part in ("ab", "cE", "N", "x", "EX", "IT", "more")] == [
        "ab", "c", "", "ENx", "", "", "",
    ]  # fmt: skip
    assert texts.found
