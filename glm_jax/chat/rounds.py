"""Prompts of ChatGLM-6B and ChatGLM2-6B: numbered rounds of question (问) and answer (答)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from glm_jax.chat.message import Message
from glm_jax.errors import UserError
from glm_jax.text.tokenizer import Tokenizer


class Exchange(NamedTuple):
    """The ids of a conversation up to an answer, and of the answer."""

    prompt: list[int]
    opening: list[int]
    """What stands between prompt and answer: ChatGLM-6B's ``[gMASK] <sop>``."""
    answer: list[int]
    end: int
    """The token that the model closes its answer with."""

    def ids(self, generate: bool) -> list[int]:
        """All of it; with ``generate`` up to where the model's answer begins."""
        asked = [*self.prompt, *self.opening]
        return asked if generate else [*asked, *self.answer, self.end]


def chatglm(messages: Sequence[Message], tokenizer: Tokenizer, generate: bool) -> Exchange:
    """ChatGLM-6B: ``text [gMASK] <sop>``, and ``answer <eop>`` behind it without ``generate``.

    Rounds count from 0; a first question stands alone, without its round.
    Source: chat() of the release's modeling_chatglm.py; preprocess_function_train of ptuning.

    Raises:
      UserError: the messages are no questions and answers in turns.
    """
    rounds, answer = _rounds(messages, generate)
    text = "".join(f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(rounds[:-1]))
    question = rounds[-1][0]
    text = f"{text}[Round {len(rounds) - 1}]\n问：{question}\n答：" if rounds[:-1] else question
    gmask, sop, eop = tokenizer.special.require("gmask", "sop", "eop")
    return Exchange(_encode(tokenizer, text), [gmask, sop], _encode(tokenizer, answer), eop)


def chatglm2(messages: Sequence[Message], tokenizer: Tokenizer, generate: bool) -> Exchange:
    """ChatGLM2-6B: ``[gMASK] sop text``, and ``answer </s>`` behind it without ``generate``.

    Rounds count from 1, the first included.
    Source: build_prompt of the release's tokenization_chatglm.py; preprocess_function_train of
    ptuning.

    Raises:
      UserError: the messages are no questions and answers in turns.
    """
    rounds, answer = _rounds(messages, generate)
    form = "[Round {}]\n\n问：{}\n\n答：{}"
    text = "\n\n".join(form.format(i, q, a) for i, (q, a) in enumerate(rounds, 1))
    gmask, sop, eos = tokenizer.special.require("gmask", "sop", "eos")
    prompt = [gmask, sop, *_encode(tokenizer, text)]
    return Exchange(prompt, [], _encode(tokenizer, answer), eos)


def _rounds(messages: Sequence[Message], generate: bool) -> tuple[list[tuple[str, str]], str]:
    """Questions with their answers, the last without; and the answer that closes a training text.

    These models know no system role: its text goes directly before the current question, as in the
    releases' OpenAI servers (openai_api.py).
    """
    turns = list(messages)
    system = turns.pop(0).content if turns and turns[0].role == "system" else ""
    for i, message in enumerate(messages):
        if message.tools or message.tool_calls or message.metadata:
            raise UserError(f"message {i} is about a tool, and this model's prompts have none")
    for i, message in enumerate(turns, len(messages) - len(turns)):
        wanted = ("user", "assistant")[(i - len(messages) + len(turns)) % 2]
        if message.role != wanted:
            raise UserError(
                f"message {i} is the {message.role}'s and should be the {wanted}'s: this model's "
                "prompts have questions and answers in turns"
            )
    answer = ""
    if not generate:
        if not turns or turns[-1].role != "assistant":
            raise UserError("a conversation that asks for no answer must end with one")
        answer = turns.pop().content
    if not turns or turns[-1].role != "user":
        raise UserError("the last message must be the user's: it is the one to answer")
    contents = [message.content for message in turns]
    contents[-1] = system + contents[-1]
    return list(zip(contents[::2], [*contents[1::2], ""], strict=True)), answer


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)
