"""A conversation: history, undo, retry, tools, limits."""

import pytest

import glm_jax
from glm_jax.chat import Chat, Message, render
from glm_jax.errors import UserError
from tests.chat.models import Scripted, tiny_config, tiny_model
from tests.text.every import tiny_tokenizer

CHAT_MODELS = ("chatglm-6b", "chatglm-6b-v1.0", "chatglm2-6b", "chatglm3-6b", "glm-4-9b")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.slow] * (x in CHAT_MODELS[1:3])) for x in CHAT_MODELS],
)
def test_a_model_of_every_family_answers(name):
    chat = glm_jax.Chat(tiny_model(name), tiny_tokenizer(name), max_new_tokens=8)
    answer = chat.send("the file reads")
    assert [m.role for m in chat.history] == ["user", *["assistant"] * (len(chat.history) - 1)]
    assert chat.history[-1] is answer
    assert chat.usage.prompt == len(render([chat.history[0]], chat.tokenizer))
    pieces = list(chat.stream("closes"))
    shown = [m.text for m in chat.history[-1:] if not m.metadata.strip()]
    assert "".join(pieces) == "\n".join(shown) or len(chat.history) > 4


@pytest.mark.parametrize(
    "name", ["chatglm-6b", pytest.param("chatglm2-6b", marks=pytest.mark.slow), "glm-4-9b"]
)
def test_the_cache_changes_nothing(name):
    """What is still in the cache is not read again, and the answers are the same."""
    tokenizer, model = tiny_tokenizer(name), tiny_model(name)
    options = {"max_new_tokens": 12, "temperature": 0.0}
    chat, texts = Chat(model, tokenizer, **options), ["the file", "a buffer", "stream"]
    for text in texts:
        before = list(chat.history)
        answer = chat.send(text)
        reused = chat.usage.reused
        alone = Chat(model, tokenizer, **options)
        alone.restore(before)
        assert alone.send(text) == answer
        assert bool(reused) == (bool(before) and not chat.rereads)
    assert bool(chat.rereads) == (name == "chatglm-6b")


def test_stream_keeps_history_with_the_last_piece(monkeypatch):
    core = Scripted(monkeypatch, "glm-4-9b", "\nthe file reads", "\nit's")
    chat = core.chat(system="a model")
    pieces = chat.stream("what")
    assert next(pieces)
    assert chat.history == []
    list(pieces)
    assert chat.history == [Message("user", "what"), Message("assistant", "the file reads")]
    chat.send("and")
    assert core.calls[1][0] == render([Message("system", "a model"), *chat.history[:3]],
                                      core.tokenizer)  # fmt: skip
    assert core.closed == 2


def test_closing_a_stream_keeps_what_was_said(monkeypatch):
    core = Scripted(monkeypatch, "glm-4-9b", "\nthe file reads and writes", "\nx")
    chat = core.chat(every=2)
    pieces = chat.stream("what")
    said = next(pieces)
    pieces.close()
    assert core.closed == 1
    assert chat.history[0] == Message("user", "what")
    assert "the file reads and writes".startswith(chat.history[1].content)
    assert chat.history[1].content.startswith(said.strip())
    assert not chat.usage.stopped


def test_an_interrupted_answer_is_kept_and_the_cache_is_not(monkeypatch):
    def interrupted(*arguments, **options):
        yield tiny_tokenizer("glm-4-9b").encode("\nthe file", add_special_tokens=False)
        raise KeyboardInterrupt

    monkeypatch.setattr("glm_jax.chat.session.stream", interrupted)
    chat = Chat(tiny_model("glm-4-9b"), tiny_tokenizer("glm-4-9b"))
    before = chat._remembered
    with pytest.raises(KeyboardInterrupt):
        chat.send("what")
    assert chat.history == [Message("user", "what"), Message("assistant", "the file")]
    assert chat._remembered is not before


def test_a_failed_answer_changes_nothing(monkeypatch):
    core = Scripted(monkeypatch, "glm-4-9b", "\nfine")
    chat = core.chat()
    chat.send("a")
    before = list(chat.history)
    with pytest.raises(IndexError):  # the script has ended
        chat.send("b")
    assert chat.history == before


def test_undo_takes_a_question_with_all_that_followed(monkeypatch):
    core = Scripted(monkeypatch, "glm-4-9b", "\nfine", 'weather\n{"city": "a"}', "\nsunny")
    chat = core.chat(tools=[WEATHER])
    chat.send("a")
    chat.send("b")
    chat.observe("it is sunny")
    assert [m.role for m in chat.undo()] == ["user", "assistant", "observation", "assistant"]
    assert [m.content for m in chat.history] == ["a", "fine"]
    chat.undo()
    with pytest.raises(UserError, match="nothing to undo"):
        chat.undo()


def test_retry_answers_again_with_another_seed(monkeypatch):
    core = Scripted(monkeypatch, "glm-4-9b", "\none", "\ntwo", "\nthree")
    chat = core.chat(seed=7)
    chat.send("a")
    assert chat.retry().content == "two"
    assert "".join(chat.stream_retry()) == "three"
    assert [m.content for m in chat.history] == ["a", "three"]
    assert core.calls[0][0] == core.calls[1][0] == core.calls[2][0]
    assert [options["seed"] for _, options in core.calls] == [7, 8, 9]
    chat.clear()
    with pytest.raises(UserError, match="no question"):
        chat.retry()


def test_tools_are_called_and_answered(monkeypatch):
    core = Scripted(monkeypatch, "glm-4-9b", 'weather\n{"city": "Paris"}', "\nsunny")
    chat = core.chat(tools=[WEATHER])
    answer = chat.send("what is the weather?")
    [call] = answer.tool_calls
    assert (call.name, call.arguments) == ("weather", {"city": "Paris"})
    assert chat.observe('{"weather": "sunny"}').content == "sunny"
    assert [m.role for m in chat.history] == ["user", "assistant", "observation", "assistant"]
    assert core.calls[1][0] == render(chat.history[:3], core.tokenizer, tools=[WEATHER])


def test_settings_come_from_the_release_then_the_checkpoint_then_the_caller(monkeypatch):
    core = Scripted(monkeypatch, "chatglm3-6b", *["\nx"] * 4)
    ids = core.tokenizer.special_ids
    generation = {
        "stop_ids": [5],
        "sampling": {"temperature": 0.5, "top_k": 3, "max_length": 9, "do_sample": True},
        "prompt_format": "glm-4-9b",
    }
    core.chat().send("a")
    core.chat(generation=generation, top_k=4, min_p=None).send("a")
    core.chat(generation={"sampling": {"do_sample": False}}).send("a")
    (_, first), (prompt, second), (_, third) = core.calls
    assert (first["temperature"], first["top_p"]) == (0.8, 0.8)
    roles = [ids["<|user|>"], ids["<|observation|>"], ids["<|system|>"]]
    assert first["stop_ids"] == (core.tokenizer.special.eos, *roles)
    assert second["stop_ids"] == (5, *roles, core.tokenizer.special.eos)
    assert (second["temperature"], second["top_k"], second["top_p"]) == (0.5, 4, 0.8)
    assert "min_p" not in second
    assert prompt == render([Message("user", "a")], core.tokenizer, format="glm-4-9b")
    assert third["temperature"] == 0.0
    with pytest.raises(UserError, match="temprature: no such setting; there are temperature"):
        core.chat(temprature=1.0)


def test_a_stop_text_ends_an_answer(monkeypatch):
    core = Scripted(monkeypatch, "chatglm2-6b", "the file [Round 2] reads")
    chat = core.chat(stop="[Round")
    assert chat.send("a").content == "the file"
    assert chat.usage.stopped
    assert core.closed == 1


def test_too_long_a_conversation_is_refused_in_one_line(monkeypatch):
    core = Scripted(monkeypatch, "glm-4-9b", "\nx")
    chat = core.chat()
    with pytest.raises(UserError, match=r"become \d+ tokens long, and this model reads 512: undo"):
        chat.send("file " * 600)
    assert chat.history == []


def test_an_answer_ends_where_the_positions_do(monkeypatch):
    core = Scripted(monkeypatch, "glm-4-9b", list(range(40, 90)) * 20)
    chat = core.chat()
    chat.send("a")
    assert chat.usage.prompt + chat.usage.answer == tiny_config("glm-4-9b").max_seq_len
    assert not chat.usage.stopped


def test_a_saved_conversation_comes_back(monkeypatch):
    core = Scripted(monkeypatch, "glm-4-9b", 'weather\n{"city": "a"}', "\nx")
    chat = core.chat(system="be brief", tools=[WEATHER])
    chat.send("a")
    saved = [message.as_dict() for message in chat.messages]
    other = core.chat()
    other.restore(saved)
    assert (other.system, other.history) == ("be brief", chat.history)


def test_no_tools_in_rounds(monkeypatch):
    with pytest.raises(UserError, match="chatglm2-6b have no tools"):
        Scripted(monkeypatch, "chatglm2-6b").chat(tools=[WEATHER])


def test_no_chat_with_a_model_that_fills_blanks():
    with pytest.raises(UserError, match="trained has no chat format"):
        Chat(tiny_model("glm-4-9b"), tiny_tokenizer("trained"))


def test_the_same_turns_give_the_same_texts():
    chats = [Chat(tiny_model("glm-4-9b"), tiny_tokenizer("glm-4-9b"), max_new_tokens=6, seed=s)
             for s in (3, 3, 4)]  # fmt: skip
    first, same, other = [[c.send(t).content for t in ("the", "file")] for c in chats]
    assert first == same != other
