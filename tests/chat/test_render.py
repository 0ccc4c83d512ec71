"""Prompts on tiny tokenizers: what the released cases do not show."""

import json

import pytest

from glm_jax.chat import AllTools, Message, ToolCall, chat_format, render
from glm_jax.chat.roles import TOOLS_LEAD
from glm_jax.errors import UserError
from tests.text.every import tiny_tokenizer

QA = [Message("user", "the file"), Message("assistant", "reads"), Message("user", "closes")]
WEATHER = {"type": "function", "function": {"name": "weather"}}


def text_of(ids, tokenizer):
    """With special tokens by name: what the model sees, readable."""
    names = {index: name for name, index in tokenizer.special_ids.items()}
    out, run = [], []
    for index in [*ids, None]:
        if index is None or (index in names and names[index] != "<unk>"):
            out += [tokenizer.decode(run) if run else "", names.get(index, "")]
            run = []
        else:
            run.append(index)
    return "".join(out)


def glm4(messages, **options):
    tokenizer = tiny_tokenizer("glm-4-9b")
    return text_of(render(messages, tokenizer, **options), tokenizer)


def test_rounds_from_0_and_from_1():
    tokenizer = tiny_tokenizer("chatglm2-6b")
    assert text_of(render(QA, tokenizer), tokenizer) == (
        "[gMASK]sop[Round 1]\n\n问：the file\n\n答：reads\n\n[Round 2]\n\n问：closes\n\n答："
    )
    same = lambda text: [*tiny_tokenizer("chatglm-6b").encode(text)]
    expected = same("[Round 0]\n问：the file\n答：reads\n[Round 1]\n问：closes\n答：")
    assert render(QA, tiny_tokenizer("chatglm-6b")) == expected


def test_a_system_text_goes_before_the_current_question_of_a_round():
    tokenizer = tiny_tokenizer("chatglm2-6b")
    system = Message("system", "a model. ")
    with_system = [*QA[:2], Message("user", "a model. closes")]
    assert render([system, *QA], tokenizer) == render(with_system, tokenizer)


def test_glm4_without_content_there_is_no_turn():
    assert glm4([Message("system"), Message("user", "x")]) == "[gMASK]<sop><|user|>\nx<|assistant|>"


def test_a_variant_of_a_family_has_its_format():
    assert chat_format("glm-4-9b-chat-1m").name == "glm-4-9b"
    assert chat_format("chatglm-6b-v1.0").name == "chatglm-6b-v1.0"
    assert chat_format("chatglm-6b-int4").name == "chatglm-6b"
    assert chat_format("chatglm3-6b-32k").name == "chatglm3-6b"
    with pytest.raises(UserError, match="glm-10b has no chat format; there are chatglm-6b,"):
        chat_format("glm-10b")


def test_all_tools_variants():
    tools = [WEATHER, {"type": "cogview"}]
    plain = AllTools().text(tools)
    assert plain.startswith("你是一个名为 GLM-4 的人工智能助手。")
    assert AllTools("GhatGLM").text(tools) == plain.replace("名为 GLM-4", "名为 GhatGLM")
    demo = AllTools(heading=True, date="2024-06-05").text(tools)
    added = "\n\n当前日期: 2024-06-05\n\n# 可用工具"
    assert demo == plain.replace("\n\n## weather", f"{added}\n\n## weather")
    assert demo in glm4([QA[0]], tools=tools, all_tools=AllTools(heading=True, date="2024-06-05"))
    with pytest.raises(UserError, match="type 'calculator' is unknown; choose one of function, py"):
        AllTools().text([{"type": "calculator"}])


def test_tools_beside_a_conversation_go_into_its_system_turn():
    text = AllTools().text([WEATHER])
    assert glm4(QA[:1], tools=[WEATHER]) == (
        f"[gMASK]<sop><|system|>\n{text}<|user|>\nthe file<|assistant|>"
    )
    both = glm4([Message("system", "be brief"), QA[0]], tools=[WEATHER])
    assert f"<|system|>\n{text}<|system|>\nbe brief<|user|>" in both
    with pytest.raises(UserError, match="tools are given twice"):
        glm4([Message("system", tools=[WEATHER]), QA[0]], tools=[WEATHER])


def test_tools_of_chatglm3_are_json_behind_a_lead():
    tokenizer = tiny_tokenizer("chatglm3-6b")
    listed = TOOLS_LEAD + "\n" + json.dumps([WEATHER["function"]], indent=4, ensure_ascii=False)
    for system, content in (([], listed), ([Message("system", "be brief")], f"be brief\n{listed}")):
        ids = render([*system, QA[0]], tokenizer, tools=[WEATHER])
        assert ids == render([Message("system", content), QA[0]], tokenizer)


def test_an_answer_that_must_call_a_tool():
    end = glm4(QA[:1], tools=[WEATHER], call="weather")[-22:]
    assert end.endswith("<|assistant|>weather\n")
    with pytest.raises(UserError, match="needs the generation prompt"):
        glm4(QA[:1], call="weather", add_generation_prompt=False)


def test_calls_are_turns_of_their_own():
    calls = (ToolCall("weather", {"city": "a"}), ToolCall("news", {}))
    said = glm4([QA[0], Message("assistant", "so:", tool_calls=calls)])
    assert said.endswith(
        '<|assistant|>\nso:<|assistant|>weather\n{"city": "a"}<|assistant|>news\n{}<|assistant|>'
    )


@pytest.mark.parametrize(
    ("name", "messages", "options", "reason"),
    [
        ("glm-4-9b", [], {}, "the conversation is empty"),
        ("glm-4-9b", Message("user", "x"), {}, "a list of messages"),
        ("chatglm2-6b", QA[:2], {}, "last message must be the user's"),
        ("chatglm2-6b", [Message("system", "x")], {}, "last message must be the user's"),
        ("chatglm2-6b", [QA[0], QA[0]], {}, "message 1 is the user's and should be the assistant"),
        ("chatglm2-6b", [Message("system"), QA[1]], {}, "message 1 is the assistant's"),
        ("chatglm-6b", [QA[0], Message("tool", "x")], {}, "message 1 is the observation's"),
        ("chatglm-6b", [QA[0], Message("assistant", "x", "t")], {}, "message 1 is about a tool"),
        ("chatglm-6b", QA, {"tools": [WEATHER]}, "chatglm-6b have no tools"),
        ("chatglm-6b", QA, {"call": "weather"}, "chatglm-6b have no tools"),
        ("chatglm-6b", QA, {"add_generation_prompt": False}, "must end with one"),
        ("chatglm2-6b", QA, {"format": "glm-4-9b"}, r"chatglm2-6b has no <\|user\|> token"),
        ("glm-4-9b", QA, {"format": "llama"}, "llama has no chat format"),
        ("trained", QA, {}, "trained has no chat format"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_said_in_one_line(name, messages, options, reason):
    with pytest.raises(UserError, match=reason) as caught:
        render(messages, tiny_tokenizer(name), **options)
    assert "\n" not in str(caught.value)
