"""The API, asked by OpenAI's own client over loopback."""

from __future__ import annotations

import concurrent.futures

import openai
import pytest

import glm_jax
from glm_jax.chat import render
from tests.serve.server import LENGTH, MOST, alone, idle, model_of, wait_for
from tests.text.every import tiny_tokenizer

NAME = "glm-4-9b"
TOKENIZER = tiny_tokenizer(NAME)
MODEL = f"tiny-{NAME}"


def ask(client, text="The file", **options):
    options = {"max_tokens": 12, "temperature": 0} | options
    messages = options.pop("messages", [{"role": "user", "content": text}])
    return client.chat.completions.create(model=MODEL, messages=messages, **options)


def complete(client, prompt="The file reads", **options):
    options = {"max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}} | options
    return client.completions.create(model=MODEL, prompt=prompt, **options)


def greedy_text(prompt, count=12) -> str:
    ids = TOKENIZER.encode(prompt) if isinstance(prompt, str) else prompt
    return TOKENIZER.decode(
        alone(NAME, ids, count, vocab_limit=TOKENIZER.used), skip_special_tokens=True
    )


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "glm_jax"


def test_a_completion_is_the_greedy_text(client):
    answer = complete(client)
    assert answer.choices[0].text == greedy_text("The file reads")
    assert answer.choices[0].finish_reason == "length"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        len(TOKENIZER.encode("The file reads")), 12,
    )  # fmt: skip
    assert usage.total_tokens == usage.prompt_tokens + 12


def test_several_prompts_of_texts_or_ids(client):
    ids = [TOKENIZER.encode("a buffer"), TOKENIZER.encode("the socket opens")]
    both = complete(client, ids)
    assert [c.text for c in both.choices] == [greedy_text(i) for i in ids]
    assert [c.index for c in both.choices] == [0, 1]
    assert complete(client, ids[0]).choices[0].text == both.choices[0].text
    texts = complete(client, ["a buffer", "the socket opens"])
    assert [c.text for c in texts.choices] == [c.text for c in both.choices]


def test_a_chat_answer_is_that_of_chat(client):
    chat = glm_jax.Chat(model_of(NAME), TOKENIZER, temperature=0.0, max_new_tokens=12)
    message = chat.send("The file")
    answer = ask(client)
    assert answer.choices[0].message.content.strip() == message.text.strip()
    assert answer.choices[0].message.role == "assistant"
    prompt = render([{"role": "user", "content": "The file"}], TOKENIZER)
    assert answer.usage.prompt_tokens == len(prompt)


def test_a_stream_is_the_same_answer_in_pieces(client):
    whole = ask(client, max_tokens=30)
    chunks = list(ask(client, max_tokens=30, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    assert last.usage == whole.usage and not last.choices
    texts = [chunk.choices[0].delta.content or "" for chunk in pieces]
    assert "".join(texts) == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_completion_streams(client):
    chunks = list(complete(client, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == greedy_text("The file reads")
    assert [c.choices[0].finish_reason for c in chunks][-1] == "length"


def test_twenty_at_a_time_each_get_their_own(client, engine):
    prompts = ["the", "a file writes", "The buffer opens; the socket closes a stream " * 2]
    prompts = [f"{i % 4} {p}" for i, p in enumerate(prompts * 4)]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda prompt: complete(client, prompt), prompts))
    assert [a.choices[0].text for a in answers] == [greedy_text(p) for p in prompts]
    wait_for(lambda: idle(engine))


def test_seeds(client):
    hot = {"temperature": 1.3, "max_tokens": 20}
    texts = [ask(client, **hot, seed=s).choices[0].message.content for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    unseeded = {ask(client, **hot).choices[0].message.content for _ in range(3)}
    assert len(unseeded) > 1


def test_n_choices_differ_and_the_first_is_that_of_one(client):
    hot = {"temperature": 1.3, "max_tokens": 16, "seed": 7}
    three = ask(client, **hot, n=3)
    texts = [choice.message.content for choice in three.choices]
    assert len(set(texts)) == 3
    assert texts[0] == ask(client, **hot).choices[0].message.content
    streamed = ["", "", ""]
    for chunk in ask(client, **hot, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    assert three.usage.prompt_tokens == ask(client, **hot).usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_where_it_begins_also_inside_tokens(client, engine, stream):
    whole = complete(client, max_tokens=MOST).choices[0].text
    first, *rest = (TOKENIZER.token_bytes(i).decode(errors="replace")
                    for i in alone(NAME, TOKENIZER.encode("The file reads"), MOST,
                               vocab_limit=TOKENIZER.used))  # fmt: skip
    # The last letter of one token and the first of the next.
    letters = [(a[-1], b[0]) for a, b in zip([first, *rest[:-1]], rest, strict=True) if a and b]
    stop = next(a + b for a, b in letters[5:] if (a + b).isascii() and a + b in whole)
    got = complete(client, max_tokens=MOST, stop=["never this", stop], stream=stream)
    if stream:
        got = list(got)
        text, reason = "".join(c.choices[0].text for c in got), got[-1].choices[0].finish_reason
    else:
        text, reason = got.choices[0].text, got.choices[0].finish_reason
        assert got.usage.completion_tokens < MOST
    assert text == whole[: whole.index(stop)]
    assert reason == "stop"
    wait_for(lambda: idle(engine))


def test_log_probabilities(client):
    chat = ask(client, logprobs=True, top_logprobs=3, max_tokens=5)
    content = chat.choices[0].logprobs.content
    assert len(content) == 5 and all(len(entry.top_logprobs) == 3 for entry in content)
    assert all(entry.top_logprobs[0].logprob == entry.logprob <= 0 for entry in content)
    plain = complete(client, logprobs=2, max_tokens=5).choices[0].logprobs
    assert len(plain.tokens) == len(plain.token_logprobs) == len(plain.text_offset) == 5
    assert all(len(each) <= 2 for each in plain.top_logprobs)
    streamed = [
        entry
        for chunk in ask(client, logprobs=True, max_tokens=5, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [e.logprob for e in streamed] == [e.logprob for e in content]
    assert ask(client).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1}, "temperature: "),
        ({"top_p": 1.5}, "top_p: "),
        ({"n": 0}, "n: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"stop": [""]}, "1 to 1000 characters"),
        ({"frequency_penalty": 1.0}, "frequency_penalty is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role 'robot' is unknown"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text"),
        ({"tools": [{"type": "function"}]}, "a tool has no name"),
        ({"tool_choice": "required"}, "names none of the tools (there are none)"),
        ({"messages": [{"role": "user", "content": "the file " * 300}]}, f"takes {LENGTH} tokens"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(client, options, said):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **options)
    assert said in refused.value.body["message"]
    assert refused.value.body["type"] == "invalid_request_error"


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="'tiny-glm-4-9b' is"):
        client.completions.create(model="gpt-4", prompt="x")


def test_a_prompt_of_impossible_ids_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="id 99999 at place 1"):
        complete(client, [20, 99999])
    with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
        complete(client, [[]])
