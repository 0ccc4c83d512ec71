"""Calls of tools, and what else a random model would never say."""

from __future__ import annotations

import contextlib
import json

import openai
import pytest

from tests.serve.scripted import script
from tests.serve.server import running, served_of, started
from tests.text.every import tiny_tokenizer

TOKENIZER = tiny_tokenizer("glm-4-9b")
TOOLS = [
    {"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "speak", "parameters": {"type": "object"}}},
]
CALL = 'track\n{"symbol": "10111", "名": [1, 2]}'
ARGUMENTS = {"symbol": "10111", "名": [1, 2]}


@contextlib.contextmanager
def asking(monkeypatch, *replies, **served):
    """A function that asks a server whose model says these."""
    script(monkeypatch, TOKENIZER, *replies)
    with (
        started(length=1024) as engine,
        running(engine, served_of(**({"length": 1024} | served))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        messages = [{"role": "user", "content": "What?"}]
        yield lambda **o: client.chat.completions.create(
            **({"model": "tiny-glm-4-9b", "messages": messages} | o)
        )


def test_a_call_comes_as_tool_calls(monkeypatch):
    with asking(monkeypatch, CALL) as ask:
        [choice] = ask(tools=TOOLS).choices
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        [call] = choice.message.tool_calls
        assert call.function.name == "track" and call.type == "function" and call.id
        assert json.loads(call.function.arguments) == ARGUMENTS


def test_a_call_streams_whole_at_the_end(monkeypatch):
    with asking(monkeypatch, CALL) as ask:
        chunks = [chunk.choices[0] for chunk in ask(tools=TOOLS, stream=True)]
        assert "".join(c.delta.content or "" for c in chunks) == ""
        [call] = [call for c in chunks for call in c.delta.tool_calls or ()]
        assert call.index == 0 and json.loads(call.function.arguments) == ARGUMENTS
        assert chunks[-1].finish_reason == "tool_calls"


def test_text_and_then_a_call(monkeypatch):
    turn = TOKENIZER.special_ids["<|assistant|>"]
    with asking(monkeypatch, ["\nI look it up.", turn, CALL]) as ask:
        [choice] = ask(tools=TOOLS).choices
        assert choice.message.content == "I look it up."
        assert choice.message.tool_calls[0].function.name == "track"


def test_a_call_and_its_result_go_back_into_a_conversation(monkeypatch):
    with asking(monkeypatch, CALL, "\nIt costs 12.") as ask:
        message = ask(tools=TOOLS).choices[0].message
        call_id = message.tool_calls[0].id
        messages = [
            {"role": "user", "content": "What?"},
            message,
            {"role": "tool", "tool_call_id": call_id, "content": '{"price": 12}'},
        ]
        answer = ask(messages=messages, tools=TOOLS).choices[0]
        assert answer.message.content == "It costs 12." and answer.finish_reason == "stop"


def test_a_forced_call_starts_with_its_name(monkeypatch):
    choice = {"type": "function", "function": {"name": "speak"}}
    with asking(monkeypatch, '{"text": "hi"}', '{"text": "hi"}') as ask:
        [call] = ask(tools=TOOLS, tool_choice=choice).choices[0].message.tool_calls
        assert call.function.name == "speak"
        assert json.loads(call.function.arguments) == {"text": "hi"}
        chunks = [c.choices[0] for c in ask(tools=TOOLS, tool_choice=choice, stream=True)]
        assert "".join(c.delta.content or "" for c in chunks) == ""
        assert [c.delta.tool_calls for c in chunks if c.delta.tool_calls]


def test_a_malformed_call_says_what_is_wrong(monkeypatch):
    with asking(monkeypatch, 'track\n{"symbol": ', "shout\n{}") as ask:
        for said in ("the call of track cannot be read", "there is no such tool"):
            [choice] = ask(tools=TOOLS).choices
            assert said in choice.message.content
            assert choice.finish_reason == "stop" and not choice.message.tool_calls


@pytest.mark.parametrize("stream", [False, True])
def test_without_tools_a_call_is_a_text(monkeypatch, stream):
    with asking(monkeypatch, CALL) as ask:
        answer = ask(tools=TOOLS, tool_choice="none", stream=stream)
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        else:
            [choice] = answer.choices
            text = choice.message.content
            assert choice.finish_reason == "stop" and not choice.message.tool_calls
        assert '"symbol": "10111"' in text


def test_characters_of_several_tokens_come_whole(monkeypatch):
    text = "晚上睡不着应该怎么办？ naïve 🙂"
    with asking(monkeypatch, "\n" + text) as ask:
        pieces = [c.choices[0].delta.content or "" for c in ask(stream=True)]
        assert "".join(pieces) == text and not any("\N{REPLACEMENT CHARACTER}" in p for p in pieces)


def test_a_model_without_a_chat_format_says_so(monkeypatch):
    with (
        asking(monkeypatch, "x", generation={"prompt_format": "glm-10b"}) as ask,
        pytest.raises(openai.BadRequestError, match=r"no chat format.*/v1/completions"),
    ):
        ask()
