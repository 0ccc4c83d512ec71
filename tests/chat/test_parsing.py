"""Replies to messages: calls read as data, and what is wrong with those that cannot be."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_jax.chat import Message, ToolCall, parse_replies, parse_reply, render
from glm_jax.chat.calls import MalformedCallError, json_call, python_call
from glm_jax.errors import UserError
from tests.text.every import tiny_tokenizer

TRACK = {"name": "track", "description": "the price of a stock"}
WEATHER = {"type": "function", "function": {"name": "weather"}}


def fence(call):
    return f"```python\n{call}\n```"


def test_chatglm3_calls_with_literals():
    [call] = parse_reply("track\n" + fence("tool_call(symbol='10111')"), "chatglm3-6b").tool_calls
    assert (call.name, call.arguments) == ("track", {"symbol": "10111"})
    text = "tool_call(a=1, b=-2.5, c=[1, 'x', None], d={'k': True}, e=(1,), f='a\\nb', g=\"'\")"
    assert python_call(f" {fence(text)}\n") == {
        "a": 1, "b": -2.5, "c": [1, "x", None], "d": {"k": True}, "e": [1], "f": "a\nb", "g": "'",
    }  # fmt: skip
    assert python_call("tool_call()") == {}
    assert python_call(fence("tool_call(\n    a=1,\n)")) == {"a": 1}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("tool_call(a=__import__('os').system('true'))", "value of a is no literal"),
        ("tool_call(a=open('x').read())", "value of a is no literal"),
        ("tool_call(a=[x for x in (1,)])", "value of a is no literal"),
        ("tool_call(a=f'{1}')", "value of a is no literal"),
        ("tool_call(a=9**9)", "value of a is no literal"),
        ("tool_call(a=b'x')", "value of a is no literal"),
        ("tool_call(a=...)", "value of a is no literal"),
        ("tool_call(a=1e999)", "value of a is no literal"),
        ("tool_call('10111')", "an argument has no name"),
        ("tool_call(**{'a': 1})", "stands for no arguments"),
        ("tool_call(a=1, a=2)", "repeated"),
        ("tool_call(a=1); print(1)", "no Python expression"),
        ("import os", "no Python expression"),
        ("print(a=1)", "calls print, not tool_call"),
        ("os.tool_call(a=1)", "no tool_call"),
        ("1", "no tool_call"),
        ("", "no Python expression"),
        ("tool_call(a=\0)", "no Python expression"),
        ("tool_call(a=" + "[" * 5000 + "]" * 5000 + ")", "no Python expression"),
        ("tool_call(a=" + "-" * 50000 + "1)", "no"),
        ("tool_call(a=" + "1+" * 20000 + "1)", "no"),
        ("tool_call(a=" + "9" * 10000 + ")", "no"),
        ("tool_call(a='" + "x" * 200000 + "')", "characters long"),
    ],
)  # fmt: skip
def test_nothing_but_literals_is_read(code, reason):
    with pytest.raises(MalformedCallError, match=reason):
        python_call(fence(code))
    message = parse_reply("track\n" + fence(code), "chatglm3-6b", [TRACK])
    assert message.tool_calls is None
    assert message.error.startswith("the call of track cannot be read: ")
    assert "\n" not in message.error


def test_glm4_calls_are_json():
    reply = 'weather\n{"city": "北京", "days": 3}'
    for tools in (None, [WEATHER]):
        message = parse_reply(reply, "glm-4-9b", tools)
        [call] = message.tool_calls
        assert (call.name, call.arguments) == ("weather", {"city": "北京", "days": 3})
        assert message.error == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{city: 1}", "no JSON"),
        ("[1]", "a JSON list, no object"),
        ("", "no JSON"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": 1} and more', "Extra data"),
        ("[" * 50000, "no JSON"),
        ('{"a": ' + "9" * 10000 + "}", "no JSON"),
        ('{"a": "' + "x" * 200000 + '"}', "characters long"),
    ],
)
def test_a_malformed_call_says_what_is_wrong(text, reason):
    with pytest.raises(MalformedCallError, match=reason):
        json_call(text)
    message = parse_reply(f"weather\n{text}", "glm-4-9b", [WEATHER])
    assert (message.content, message.metadata) == (text, "weather")
    assert reason in message.error
    # Where no tools are known, a word on the first line may be the answer's own.
    assert parse_reply(f"weather\n{text}", "glm-4-9b").error == ""


def test_a_call_of_a_tool_that_is_not_there():
    message = parse_reply("news\n{}", "glm-4-9b", [WEATHER, {"type": "python"}])
    reason = "there is no such tool; there are weather, python"
    assert message.error == f"the call of news cannot be read: {reason}"
    assert parse_reply("news\n{}", "glm-4-9b", []).error.endswith("there are none")


def test_tools_that_take_plain_text():
    code = "print(1)\nprint(2)"
    message = parse_reply(f"python\n{code}", "glm-4-9b", [{"type": "python"}])
    assert message.tool_calls == (ToolCall("python", None, code),)
    message = parse_reply("interpreter\nas follows\n" + fence(code), "chatglm3-6b")
    assert message.tool_calls[0].name == "interpreter"


def test_a_first_line_that_is_no_name_is_an_answer():
    """The released code would hide the sentence as metadata."""
    text = "Certainly, here it is:\n1. a file"
    assert parse_reply(text, "glm-4-9b") == Message("assistant", text)
    assert parse_reply("Yes", "chatglm3-6b") == Message("assistant", "Yes")


@given(st.text(), st.sampled_from(["chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b"]))
def test_no_reply_raises(text, name):
    for tools in (None, [WEATHER], []):
        for message in parse_replies(text, name, tools):
            assert message.role == "assistant"
    for message in parse_replies(f"weather\n{text}", name, [WEATHER]):
        assert isinstance(message.error, str)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
arguments = st.dictionaries(st.sampled_from(["city", "days", "x"]), json_values, max_size=3)


@given(arguments)
def test_what_a_prompt_writes_is_read_back(given_arguments):
    """A client's call goes into the prompt as the model would have written it."""
    message = Message("assistant", tool_calls=(ToolCall("weather", given_arguments),))
    for name, read in (("chatglm3-6b", python_call), ("glm-4-9b", json_call)):
        tokenizer = tiny_tokenizer(name)
        ids = render([message], tokenizer, add_generation_prompt=False)
        line, _, content = tokenizer.decode(ids[3:]).partition("\n")
        assert (line.strip(), read(content)) == ("weather", given_arguments)


def test_openai_dicts():
    message = Message.of(
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function",
                 "function": {"name": "weather", "arguments": '{"city": "a"}'}}
            ],
        }
    )  # fmt: skip
    assert message.tool_calls == (ToolCall("weather", {"city": "a"}, "", "c1"),)
    result = Message.of({"role": "tool", "tool_call_id": "c1", "content": "sunny"})
    assert (result.role, result.tool_call_id) == ("observation", "c1")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Message.of({"role": "developer", "content": parts}) == Message("system", "ab")


def test_dicts_come_back():
    call = ToolCall("weather", {"city": "a"}, '{"city": "a"}', "c1")
    message = Message("assistant", '{"city": "a"}', "weather", tool_calls=(call,))
    assert Message.of(json.loads(json.dumps(message.as_dict()))) == message
    assert Message("user", "a").as_dict() == {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "robot", "content": "x"}, "role 'robot' is unknown; choose one of system, user"),
        ({"content": "x"}, "a dict with a role"),
        ("hello", "a dict with a role"),
        ({"role": "user", "content": 3}, "content is 3; it must be a list"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "only text can be read"),
        ({"role": "user", "content": "x", "metadata": 3}, "metadata of a message is 3"),
        ({"role": "user", "content": "x", "metadata": "a\nb"}, "has a line break"),
        ({"role": "user", "tools": [3]}, "a tool is a dict, not 3"),
        ({"role": "user", "tools": {}}, "tools is {}; it must be a list"),
        ({"role": "system", "tools": [{"type": "function"}]}, "a tool has no name"),
        ({"role": "assistant", "tool_calls": [{}]}, "with a function's name"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
         "arguments of f are no JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]},
         r"arguments of f are \[\], no JSON object"),
    ],
)  # fmt: skip
def test_what_is_no_message_is_named(message, reason):
    with pytest.raises(UserError, match=f"message 1: .*{reason}"):
        render([Message("user", "x"), message], tiny_tokenizer("glm-4-9b"))
