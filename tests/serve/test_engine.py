"""The engine: a reply is what it is alone, slots come back, and one failure is one failure."""

from __future__ import annotations

import time

import numpy as np
import pytest

import glm_jax
from glm_jax.serve import rows as rows_module
from glm_jax.serve import slots
from glm_jax.serve.engine import Draining
from glm_jax.serve.schedule import QueueFull
from tests.serve.server import Asked, alone, idle, model_of, slow_down, started, wait_for
from tests.text.every import tiny_tokenizer

CAUSAL, PREFIX = "glm-4-9b", "chatglm-6b"


def prompts(name: str, count: int, lengths=(3, 40, 100), seed: int = 0) -> list[list[int]]:
    """Random ids, none of them special; few lengths, so that little is compiled."""
    rng = np.random.default_rng(seed)
    tokenizer = tiny_tokenizer(name)
    special = tokenizer.special
    made = []
    for i in range(count):
        ids = rng.integers(10, 140, lengths[i % len(lengths)]).tolist()
        made.append([*ids, special.gmask, special.sop] if name == PREFIX else ids)
    return made


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(CAUSAL, marks=pytest.mark.slow),
        PREFIX,
        pytest.param("glm-10b", marks=pytest.mark.slow),
    ],
)
def test_a_reply_in_a_crowd_is_the_reply_alone(name):
    asked_for = prompts(PREFIX if name == PREFIX else CAUSAL, 11)
    if name == "glm-10b":
        special = tiny_tokenizer(name).special
        asked_for = [[*ids, special.mask, special.eos, special.sop] for ids in asked_for]
    with started(name) as engine:
        asked = [Asked(model_of(name), p, 5 + i * 2) for i, p in enumerate(asked_for)]
        for one in asked:
            engine.submit([one.request])
        replies = [one.wait().ids for one in asked]
        assert replies == [alone(name, p, 5 + i * 2) for i, p in enumerate(asked_for)]
        assert len(set(map(tuple, replies))) > 5  # the model does tell prompts apart
        assert {one.reason for one in asked} == {"length"}
        wait_for(lambda: idle(engine))


def test_a_seed_gives_the_same_text_in_any_company():
    prompt = prompts(CAUSAL, 1)[0]
    settings = {"temperature": 1.5, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.3}
    want = alone(CAUSAL, prompt, 20, **settings, seed=5)
    with started() as engine:
        crowd = [Asked(model_of(), p, 30, temperature=2.0, seed=i)
                 for i, p in enumerate(prompts(CAUSAL, 6, seed=1))]  # fmt: skip
        engine.submit([one.request for one in crowd])
        same = [Asked(model_of(), prompt, 20, **settings, seed=5) for _ in range(3)]
        other = Asked(model_of(), prompt, 20, **settings, seed=6)
        engine.submit([one.request for one in (*same, other)])
        assert [one.wait().ids for one in same] == [want] * 3
        assert other.wait().ids != want


def test_ids_beyond_the_tokenizer_are_never_sampled():
    with started() as engine:
        hot = Asked(model_of(), [20, 21], 60, temperature=50.0, vocab_limit=30)
        engine.submit([hot.request])
        assert max(hot.wait().ids) < 30


def test_a_stop_id_ends_a_row_and_its_slot_serves_the_next():
    prompt = prompts(CAUSAL, 1)[0]
    whole = alone(CAUSAL, prompt, 20)
    stop = whole[6]
    with started(slots=1) as engine:
        first, second = Asked(model_of(), prompt, 20, [stop]), Asked(model_of(), prompt, 4)
        engine.submit([first.request, second.request])
        assert first.wait().reason == "stop"
        assert first.ids == whole[: whole.index(stop) + 1]
        assert second.wait().ids == whole[:4]


def test_log_probabilities_are_the_model_s_own():
    prompt = prompts(CAUSAL, 1)[0]
    with started() as engine:
        plain, wide = Asked(model_of(), prompt, 6), Asked(model_of(), prompt, 6, likely=4)
        engine.submit([plain.request, wide.request])
        plain.wait()
        [logits] = glm_jax.score(model_of(), [[*prompt, *plain.ids]])
        rows = logits[len(prompt) - 1 : -1].astype(np.float64)
        want = rows - np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1, keepdims=True))
        want -= rows.max(-1, keepdims=True)
        got = [token.logprob for token in plain.tokens]
        np.testing.assert_allclose(got, want[np.arange(6), plain.ids], rtol=1e-3, atol=1e-3)
        for row, token in zip(want, wide.wait().tokens, strict=True):
            assert [i for i, _ in token.likely] == np.argsort(-row)[:4].tolist()
            assert token.likely[0] == (token.id, token.logprob)
        assert not plain.tokens[0].likely


def test_a_long_prompt_is_read_in_pieces_between_the_steps_of_others(monkeypatch):
    order = []
    read, write = rows_module.Rows.read, rows_module.Rows.write
    monkeypatch.setattr(rows_module.Rows, "read", lambda self, request: (
        order.append(f"read {request.length}") or read(self, request)))  # fmt: skip
    monkeypatch.setattr(rows_module.Rows, "write", lambda self, *a, **k: (
        order.append("write") or write(self, *a, **k)))  # fmt: skip
    long = prompts(CAUSAL, 1, (150,))[0]
    with started(burst=0.0) as engine:
        short = Asked(model_of(), [20, 21, 22], 60)
        engine.submit([short.request])
        wait_for(lambda: short.ids)
        late = Asked(model_of(), long, 3)
        engine.submit([late.request])
        assert late.wait().ids == alone(CAUSAL, long, 3)
    begin = order.index("read 150")
    assert order[begin : begin + 9] == ["read 150", "write"] * 4 + ["read 150"]


def test_nothing_is_compiled_after_the_start():
    with started() as engine:
        before = slots.read._cache_size(), slots.write._cache_size()
        asked = [Asked(model_of(), p, 9, temperature=i % 2, likely=i % 3)
                 for i, p in enumerate(prompts(CAUSAL, 12, (1, 9, 33, 64, 65, 150)))]  # fmt: skip
        engine.submit([one.request for one in asked])
        for one in asked:
            one.wait()
        assert (slots.read._cache_size(), slots.write._cache_size()) == before


def test_a_cancelled_request_frees_its_slot_at_once(monkeypatch):
    slow_down(monkeypatch)
    with started(slots=1, burst=0) as engine:
        endless, waiting = Asked(model_of(), [20], 180), Asked(model_of(), [21], 180)
        next_one = Asked(model_of(), [22, 23], 4)
        for one in (endless, waiting, next_one):
            engine.submit([one.request])
        wait_for(lambda: endless.ids)
        engine.cancel(waiting.request)
        assert waiting.reason == "cancelled"
        engine.cancel(endless.request)
        assert next_one.wait().ids == alone(CAUSAL, [22, 23], 4)
        assert len(endless.ids) < 180
        assert endless.wait().reason == "cancelled"


def test_a_full_queue_says_when_to_come_again(monkeypatch):
    slow_down(monkeypatch)
    with started(slots=1, most_waiting=2, burst=0) as engine:
        asked = [Asked(model_of(), [20 + i], 40) for i in range(4)]
        engine.submit([asked[0].request])
        wait_for(lambda: asked[0].ids)
        engine.submit([asked[1].request])
        with pytest.raises(QueueFull, match="come again") as full:
            engine.submit([asked[2].request, asked[3].request])  # all of them or none
        assert full.value.seconds >= 1
        engine.submit([asked[2].request])
        assert [one.wait().reason for one in asked[:3]] == ["length"] * 3
        assert not asked[3].news


def test_a_prompt_that_cannot_be_read_disturbs_nobody(monkeypatch):
    def broken(row, start, end, width, piece=rows_module._piece):
        if row.tokens[0] == 66:
            raise RuntimeError("this prompt is cursed")
        return piece(row, start, end, width)

    with started() as engine:
        monkeypatch.setattr(rows_module, "_piece", broken)
        good, bad = Asked(model_of(), [20, 21], 30), Asked(model_of(), [66, 21], 30)
        engine.submit([good.request, bad.request])
        assert bad.wait().news[-1].error == "this prompt is cursed"
        assert good.wait().ids == alone(CAUSAL, [20, 21], 30)
        wait_for(lambda: idle(engine))


def test_a_failure_of_the_device_ends_those_it_served_and_nobody_else(monkeypatch):
    failures = iter([True])

    def failing(*args, write=slots.write, **kwargs):
        found = write(*args, **kwargs)  # takes the slots' memory with it
        if next(failures, False):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return found

    with started(slots=2) as engine:
        monkeypatch.setattr(rows_module, "write", failing)
        asked = [Asked(model_of(), [20 + i], 10) for i in range(4)]
        engine.submit([one.request for one in asked])
        assert [one.wait().reason for one in asked] == ["error", "error", "length", "length"]
        assert "RESOURCE_EXHAUSTED" in asked[0].news[-1].error
        assert asked[3].ids == alone(CAUSAL, [23], 10)


def test_a_listener_that_fails_is_let_go():
    with started() as engine:
        gone, here = Asked(model_of(), [20], 150), Asked(model_of(), [21], 20)

        def deliver(news):
            raise RuntimeError("nobody listens")

        gone.request.deliver = deliver
        engine.submit([gone.request, here.request])
        assert here.wait().ids == alone(CAUSAL, [21], 20)
        wait_for(lambda: idle(engine))


def test_draining_serves_who_is_there_and_nobody_new():
    with started(slots=1) as engine:
        asked = [Asked(model_of(), [20 + i], 60) for i in range(3)]
        engine.submit([one.request for one in asked])
        begin = time.monotonic()
        assert engine.drain(60)
        assert time.monotonic() - begin < 60
        assert [one.reason for one in asked] == ["length"] * 3
        with pytest.raises(Draining):
            engine.submit([Asked(model_of(), [20], 3).request])


def test_stopping_tells_those_who_wait(monkeypatch):
    slow_down(monkeypatch)
    with started(slots=1, burst=0) as engine:
        asked = [Asked(model_of(), [20 + i], 180) for i in range(3)]
        engine.submit([one.request for one in asked])
        engine.stop()
        assert asked[2].wait().news[-1].error == "the server is shutting down"
