"""What the released chat functions give the model, id for id."""

import hashlib

import pytest

from glm_jax.chat import AllTools, Message, parse_replies, parse_reply, render
from glm_jax.chat.all_tools import _BUILT_IN
from glm_jax.chat.roles import TOOLS_LEAD
from tests.chat.golden import golden
from tests.text.every import released_tokenizer

ROUNDS = ("chatglm-6b-v1.0", "chatglm-6b", "chatglm2-6b")


def _messages(case):
    pairs = [m for q, a in case["history"] for m in (Message("user", q), Message("assistant", a))]
    return [*pairs, Message("user", case["query"])]


@pytest.mark.parametrize("name", ROUNDS)
def test_rounds(name):
    tokenizer = released_tokenizer(name)
    for case in golden(name)["chat"]:
        assert render(_messages(case), tokenizer) == case["input_ids"]
        reply = tokenizer.decode(case["fake_answer_ids"][:-1])
        assert parse_reply(reply, name).content == case["response"]


def test_streamed_inputs_of_chatglm2():
    for case in golden("chatglm2-6b")["stream_inputs"]:
        ids = render(_messages(case), released_tokenizer("chatglm2-6b"))
        assert ids == case["input_ids"]


def test_chatglm3():
    tokenizer = released_tokenizer("chatglm3-6b")
    for case in golden("chatglm3-6b")["chat"]:
        messages = [*case["history"], {"role": case["role"], "content": case["query"]}]
        assert render(messages, tokenizer) == case["input_ids"]


def test_glm4():
    tokenizer = released_tokenizer("glm-4-9b")
    for case in golden("glm-4-9b")["chat"]:
        prompt = case["add_generation_prompt"]
        ids = render(case["conversation"], tokenizer, add_generation_prompt=prompt)
        assert ids == case["input_ids"]


def test_glm4_rows_of_a_batch_are_the_prompts_alone():
    case = golden("glm-4-9b")["chat_batch"]
    tokenizer = released_tokenizer("glm-4-9b")
    rows = zip(case["conversations"], case["input_ids"], case["attention_mask"], strict=True)
    for messages, padded, mask in rows:
        assert render(messages, tokenizer) == padded[mask.index(1) :]


def test_glm4_without_the_prefix():
    case = dict(golden("glm-4-9b")["no_prefix"])
    ids = render(case["conversation"], released_tokenizer("glm-4-9b"))
    assert ids[2:] == case["input_ids"]


def test_a_reply_of_chatglm_6b():
    for case in golden("chatglm-6b")["process_response"]:
        assert parse_reply(case["in"], "chatglm-6b").content == case["out"]


@pytest.mark.parametrize("name", ["chatglm3-6b", "glm-4-9b"])
def test_replies_with_metadata(name):
    for case in golden(name)["process_response"]:
        messages = parse_replies(case["in"], name)
        said = [m for m in case["new_history"] if m not in case["history"]]
        keys = ("role", "metadata", "content")
        assert [{k: getattr(m, k) for k in keys} for m in messages] == said
        last = messages[-1]
        if isinstance(case["content"], str):
            assert last.text == case["content"]
        else:
            shown = {"name": last.metadata.strip(), "content": last.content}
            assert shown == case["content"]


# Spec, section 8.3: characters and SHA-256 of the released texts.
TEXTS = {
    "self": (75, "948f006d75e5b2764fb0d2da15f0a2326beeb6712a4640425510e473b2c36563"),
    "python": (200, "2d55afd41b1e0ad05543c8679b5065a7adb7b2a3c2caa746f87f465418f66cff"),
    "simple_browser": (482, "1e3d300fa432bcb30d0e26c78151e5af36eb400771ff1e8155cf4839da5f06c9"),
    "cogview": (217, "95a68c27a4d46f40fa06837d503cfea388e8752acb320e539e1dfd1f6786a676"),
    "lead": (91, "c080568f7396e28fe39a8b22d17761743f625622e99447711778ee24ecb4ee6e"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_long_texts_are_the_released_ones(name):
    texts = {**_BUILT_IN, "self": AllTools().text([]), "lead": TOOLS_LEAD + "\n"}
    text = texts[name]
    assert (len(text), hashlib.sha256(text.encode()).hexdigest()) == TEXTS[name]


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("chatglm-6b", [5, 74874, 130001, 130004]),
        ("chatglm3-6b", [64790, 64792, 64795, 30910, 13, 36474, 54591, 64796]),
        ("glm-4-9b", [151331, 151333, 151336, 198, 109377, 151337]),
        ("chatglm2-6b", [64790, 64792, 790, 30951, 517, 30910, 30939, 30996, 13, 13, 54761, 31211,
                         39701, 13, 13, 55437, 31211]),
    ],
)  # fmt: skip
def test_the_specs_prompts(name, ids):
    assert render([Message("user", "你好")], released_tokenizer(name)) == ids


def test_the_specs_training_texts():
    turns = [Message("user", "你好"), Message("assistant", "你好")]
    whole = lambda name: render(turns, released_tokenizer(name), add_generation_prompt=False)
    assert whole("chatglm-6b") == [5, 74874, 130001, 130004, 5, 74874, 130005]
    assert whole("chatglm2-6b")[-3:] == [36474, 54591, 2]
    assert whole("chatglm3-6b") == [64790, 64792, 64795, 30910, 13, 36474, 54591,
                                    64796, 30910, 13, 36474, 54591]  # fmt: skip
    assert whole("glm-4-9b") == [151331, 151333, 151336, 198, 109377, 151337, 198, 109377]
