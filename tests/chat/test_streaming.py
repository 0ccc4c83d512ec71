"""Text that comes in parts is the text that comes at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_jax.chat import chat_format, parse_replies
from glm_jax.chat.streaming import ReplyReader, StopTexts
from tests.text.every import tiny_tokenizer

FORMATS = ("chatglm-6b", "chatglm-6b-v1.0", "chatglm2-6b", "chatglm3-6b", "glm-4-9b")
PARTS = ["好", "你", ",", "!", "?", " ", "\n", "a", "[", "[[训练时间]]", "[[训练", "。", "track\n"]
texts = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


def read(name, ids, cut, tools=None, stop=()):
    reader = ReplyReader(tiny_tokenizer(name), chat_format(name), tools, stop)
    pieces = [reader.push(part) for part in (ids[:cut], ids[cut:])]
    return "".join([*pieces, reader.flush()]), reader


@settings(deadline=None)
@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b"])
@given(text=texts)
def test_parts_joined_are_the_messages_text(name, text):
    tokenizer = tiny_tokenizer(name)
    ids = tokenizer.encode(text, add_special_tokens=False)
    reader = ReplyReader(tokenizer, chat_format(name))
    shown = "".join(reader.push([index]) for index in ids) + reader.flush()
    [message] = reader.messages()
    assert [message] == parse_replies(tokenizer.decode(ids), name)
    assert shown == ("" if message.metadata.strip() else message.text)


@pytest.mark.parametrize("name", ["chatglm3-6b", "glm-4-9b"])
def test_a_turn_begins_at_the_id_and_not_at_its_name(name):
    tokenizer = tiny_tokenizer(name)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
    turn = tokenizer.special_ids["<|assistant|>"]
    ids = [*encode("\nthe <|assistant|>model\nx"), turn, *encode("model\nreads")]
    shown, reader = read(name, ids, 3)
    assert shown == "the <|assistant|>model\nx"
    first, second = reader.messages()
    assert (first.content, first.metadata) == (shown, "")
    assert (second.content.strip(), second.metadata.strip()) == ("reads", "model")


def test_two_answers_are_lines_apart():
    tokenizer = tiny_tokenizer("glm-4-9b")
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
    ids = [*encode("\nfile "), tokenizer.special_ids["<|assistant|>"], *encode("\nstream")]
    assert read("glm-4-9b", ids, 2)[0] == "file\nstream"


def test_a_stop_text_ends_the_reply():
    ids = tiny_tokenizer("glm-4-9b").encode("\nthe file reads STOP it", add_special_tokens=False)
    shown, reader = read("glm-4-9b", ids, 5, stop=("STOP", "STOPS"))
    assert shown == "the file reads"
    assert reader.stopped
    assert reader.messages()[0].content == "the file reads"


@given(
    texts=st.lists(st.text("ab", max_size=5), max_size=6), stop=st.lists(st.text("ab"), max_size=3)
)
def test_stop_texts_of_any_parts(texts, stop):
    stopper = StopTexts(stop)
    passed = "".join(stopper.push(text) for text in texts) + stopper.flush()
    whole = "".join(texts)
    places = [whole.find(text) for text in stop if text and text in whole]
    assert passed == (whole[: min(places)] if places else whole)
    assert stopper.found == bool(places)


def test_a_long_first_line_is_shown_at_once():
    """Not held back until it ends: no tool is called so."""
    tokenizer = tiny_tokenizer("glm-4-9b")
    ids = tokenizer.encode("the model, it", add_special_tokens=False)
    reader = ReplyReader(tokenizer, chat_format("glm-4-9b"))
    assert "".join(reader.push([index]) for index in ids) == "the model, it"
