"""Which ids of a conversation are learned: the releases' labels, and what holds for all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_jax.chat import Message, ToolCall, render, render_training
from glm_jax.errors import UserError
from tests.text.every import released_tokenizer, tiny_tokenizer

HELLO = [Message("user", "你好"), Message("assistant", "你好")]
ROLES = ("chatglm3-6b", "glm-4-9b")
ROUNDS = ("chatglm-6b", "chatglm-6b-v1.0", "chatglm2-6b")


def labels(text):
    """As the releases write them: -100 where nothing is learned."""
    return [i if learn else -100 for i, learn in zip(text.ids, text.learned, strict=True)]


def released_labels(name, messages=HELLO, **options):
    [text] = render_training(messages, released_tokenizer(name), **options)
    return labels(text)


# Spec, sections 3.3 to 3.6.
def test_chatglm_6b():
    assert released_labels("chatglm-6b") == [-100] * 3 + [130004, 5, 74874, 130005]


def test_chatglm2_6b():
    assert released_labels("chatglm2-6b") == [-100] * 17 + [36474, 54591, 2]


def test_chatglm3_6b():
    [text] = render_training(HELLO, released_tokenizer("chatglm3-6b"))
    assert text.ids == [64790, 64792, 64795, 30910, 13, 36474, 54591,
                        64796, 30910, 13, 36474, 54591, 2]  # fmt: skip
    assert labels(text) == [-100] * 8 + [30910, 13, 36474, 54591, 2]


def test_glm_4_9b():
    [text] = render_training(HELLO, released_tokenizer("glm-4-9b"))
    assert text.ids == [151331, 151333, 151336, 198, 109377, 151337, 198, 109377, 151336]
    assert labels(text) == [-100] * 6 + [198, 109377, 151336]
    combined = released_labels("glm-4-9b", turns="last")
    assert combined == [-100] * 7 + [109377, 151336]


def test_a_round_gives_a_text_of_its_own():
    tokenizer = tiny_tokenizer("chatglm-6b")
    talk = [Message("system", "the "), *HELLO, Message("user", "file"), Message("assistant", "x")]
    texts = render_training(talk, tokenizer)
    prompts = [render(talk[:2], tokenizer), render(talk[:4], tokenizer)]
    assert [text.ids[: text.prompt] for text in texts] == prompts
    assert [text.learned.index(True) for text in texts] == [len(p) - 1 for p in prompts]
    assert render_training(talk, tokenizer, turns="last") == texts[1:]
    silent = [talk[0], talk[1], Message("assistant", "x", loss=False), *talk[3:]]
    assert [t.ids for t in render_training(silent, tokenizer)] == [
        [*render(silent[:4], tokenizer), *tokenizer.encode("x", add_special_tokens=False),
         tokenizer.special.eop]
    ]  # fmt: skip


@pytest.mark.parametrize("name", ROLES)
def test_a_call_is_learned_with_its_name_and_what_ends_it(name):
    tokenizer = tiny_tokenizer(name)
    call = Message("assistant", "reads:", tool_calls=(ToolCall("open", {"a": 1}),))
    talk = [HELLO[0], call, Message("tool", "closed"), Message("assistant", "done")]
    [text] = render_training(talk, tokenizer, turns="all")
    spoken, run = [], []
    for index, learn in zip(text.ids, text.learned, strict=True):
        if learn:
            run.append(index)
        elif run:
            spoken, run = [*spoken, tokenizer.decode(run).strip()], []
    spoken.append(tokenizer.decode(run).strip())
    first, last = (x.replace("<|assistant|>\n", "<|assistant|>") for x in spoken)
    assert "reads:" in first
    assert "open" in first
    assert first.endswith("<|observation|>")
    assert last.startswith("done")
    [late] = render_training(talk, tokenizer, turns="last")
    assert labels(late)[: late.learned.index(True)] == [-100] * late.learned.index(True)
    assert sum(late.learned) < sum(text.learned)


@pytest.mark.parametrize("name", ROLES)
def test_a_message_says_itself_whether_it_is_learned(name):
    tokenizer = tiny_tokenizer(name)
    silent = Message.of({"role": "assistant", "content": "the file", "loss": False})
    talk = [HELLO[0], silent, Message("user", "reads", loss=True), Message("assistant", "x")]
    [text] = render_training(talk, tokenizer)
    before = len(render(talk[:2], tokenizer, add_generation_prompt=False))
    assert text.learned.index(True) == before + 1
    assert all(text.learned[before + 1 :])
    with pytest.raises(UserError, match="no answer of the assistant's to learn"):
        render_training(talk[:2], tokenizer)


def test_loss_is_true_or_false():
    with pytest.raises(UserError, match="loss of a message is 1; it must be true or false"):
        Message.of({"role": "assistant", "content": "x", "loss": 1})
    assert Message("assistant", "x", loss=False).as_dict()["loss"] is False


words = st.text("the file reads 你好\n。?", min_size=1, max_size=12).map(lambda t: t + "x")
rounds_of_talk = st.lists(st.tuples(words, words), min_size=1, max_size=3)


@pytest.mark.parametrize("name", [*ROLES, *ROUNDS])
@settings(max_examples=25, deadline=None)
@given(pairs=rounds_of_talk, system=words | st.none())
def test_what_is_not_learned_before_an_answer_is_the_prompt_of_inference(name, pairs, system):
    tokenizer = tiny_tokenizer(name)
    talk = [Message("system", system)] if system else []
    for question, answer in pairs:
        talk += [Message("user", question), Message("assistant", answer)]
    texts = render_training(talk, tokenizer)
    ends = [i for i, message in enumerate(talk) if message.role == "assistant"]
    if name in ROLES:
        [text] = texts
        found = [text.ids[:i] for i in range(1, len(text.ids))
                 if text.learned[i] and not text.learned[i - 1]]  # fmt: skip
    else:
        found = [text.ids[: text.prompt] for text in texts]
    assert found == [render(talk[:i], tokenizer) for i in ends]


@pytest.mark.parametrize("name", [*ROLES, *ROUNDS])
@settings(max_examples=25, deadline=None)
@given(pairs=rounds_of_talk)
def test_every_learned_id_belongs_to_an_answer_or_ends_it(name, pairs):
    tokenizer = tiny_tokenizer(name)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
    talk = [m for q, a in pairs for m in (Message("user", q), Message("assistant", a))]
    ends = {tokenizer.special.eos, tokenizer.special.eop, tokenizer.special.sop,
            tokenizer.special_ids.get("<|user|>")}  # fmt: skip
    learned = [i for text in render_training(talk, tokenizer)
               for i, learn in zip(text.ids, text.learned, strict=True) if learn]  # fmt: skip
    said = [
        i for _, answer in pairs for i in ([] if name in ROUNDS else encode("\n")) + encode(answer)
    ]
    assert [i for i in learned if i not in ends] == [i for i in said if i not in ends]
