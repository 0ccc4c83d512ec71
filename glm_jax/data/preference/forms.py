"""What a line says: a prompt with two answers, or with what is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from glm_jax.chat import Message
from glm_jax.data.finetune.forms import (
    Entry,
    openai_message,
    parse_object,
    read_history,
    read_messages,
    read_tools,
    text_field,
)
from glm_jax.data.preference.options import PreferenceData
from glm_jax.errors import UserError


class Preference(NamedTuple):
    """A conversation up to an answer, and two answers to it."""

    messages: list[Message]
    tools: Sequence[Mapping[str, Any]] | None
    chosen: str
    rejected: str


class Question(NamedTuple):
    """A conversation up to an answer, and the right one, where it is known."""

    messages: list[Message]
    tools: Sequence[Mapping[str, Any]] | None
    answer: str | None


@dataclasses.dataclass(frozen=True)
class PreferenceReader:
    """Reads a line of pairs."""

    options: PreferenceData

    def __call__(self, line: bytes) -> Preference:
        """Raises UserError: what is wrong with it; the caller names its place."""
        entry, own = parse_object(line), self.options
        messages = _prompt(entry, own.prompt_column)
        chosen = _answer(entry, own.chosen_column)
        rejected = _answer(entry, own.rejected_column)
        if chosen == rejected:
            raise UserError(
                f"fields {own.chosen_column!r} and {own.rejected_column!r} are the same text; a "
                "pair prefers one of two"
            )
        return Preference(messages, read_tools(entry), chosen, rejected)


@dataclasses.dataclass(frozen=True)
class QuestionReader:
    """Reads a line of questions."""

    options: PreferenceData

    def __call__(self, line: bytes) -> Question:
        """Raises UserError: what is wrong with it; the caller names its place."""
        entry, name = parse_object(line), self.options.answer_column
        messages, answer = _prompt(entry, self.options.prompt_column), entry.get(name)
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = str(answer)
        if answer is not None and not isinstance(answer, str):
            raise UserError(f"field {name!r} is a {type(answer).__name__}, no text or number")
        return Question(messages, read_tools(entry), answer)


def _prompt(entry: Entry, name: str) -> list[Message]:
    if name not in entry and "messages" in entry:
        name = "messages"
    if isinstance(entry.get(name), list):
        messages = read_messages(entry, name, openai_message)
    else:
        question = Message("user", text_field(entry, name))
        messages = [*read_history(entry, "history"), question]
    if messages[-1].role == "assistant":
        raise UserError(f"field {name!r} ends with the assistant's answer; it is a prompt for one")
    return messages


def _answer(entry: Entry, name: str) -> str:
    """A text, or a list of the one message that says it (as TRL's data has it)."""
    if not isinstance(entry.get(name), list):
        return text_field(entry, name)
    messages = read_messages(entry, name, openai_message)
    if len(messages) != 1 or messages[0].role != "assistant" or not messages[0].content.strip():
        raise UserError(
            f"field {name!r} is a list of {len(messages)} messages; it holds the assistant's "
            "answer alone"
        )
    return messages[0].content
