"""What a line says: the forms of fine-tuning data, read into conversations, pairs and texts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from glm_jax.chat import Message, ToolCall
from glm_jax.chat.message import check_tools
from glm_jax.data.finetune.options import FinetuneData, Form
from glm_jax.errors import UserError

Entry = Mapping[str, Any]


class Conversation(NamedTuple):
    """Messages to learn from; tools that are given beside them."""

    messages: list[Message]
    tools: Sequence[Mapping[str, Any]] | None = None


class Pair(NamedTuple):
    """A source and its target: for a chat model a question and its answer."""

    source: str
    target: str

    def conversation(self) -> Conversation:
        return Conversation([Message("user", self.source), Message("assistant", self.target)])


class Text(NamedTuple):
    """A text to go on pretraining with."""

    text: str


Content = Conversation | Pair | Text


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the lines of one source: which form, which fields."""

    form: Form = "auto"
    prompt: str = ""
    response: str = ""
    history: str = ""
    text: str = "text"

    @classmethod
    def of(cls, data: FinetuneData) -> Reader:
        columns = data.prompt_column, data.response_column, data.history_column
        return cls(data.form, *columns, data.text_column)

    def __call__(self, line: bytes) -> Content:
        """The content of one line of JSON.

        Raises:
          UserError: what is wrong with it; the caller names its place.
        """
        entry = parse_object(line)
        return _READERS[self._form(entry)](self, entry)

    def _form(self, entry: Entry) -> Form:
        if self.form != "auto":
            return self.form
        if self.prompt and self.prompt in entry:
            return "prompt_response"
        for form, fields in _SIGNS.items():
            if any(all(name in entry for name in names) for names in fields):
                return form
        if self.text in entry:
            return "text"
        shown = ", ".join(list(entry)[:8]) or "none"
        raise UserError(
            f"its form cannot be told from its fields ({shown}); there are messages, conversations,"
            " prompt and response, content and summary, source and target, text: see form and the "
            "columns"
        )

    def columns(self, entry: Entry) -> tuple[str, str, str]:
        """Names of the fields for question, answer and history."""
        short = "prompt" not in entry and "content" in entry
        prompt = self.prompt or ("content" if short else "prompt")
        response = self.response or ("summary" if prompt == "content" else "response")
        return prompt, response, self.history or "history"


def parse_object(line: bytes) -> Entry:
    """A JSON object.

    Raises:
      UserError: it is none.
    """
    try:
        entry = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"invalid UTF-8 at byte {error.start} of the line") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise UserError(f"a JSON {type(entry).__name__}, not an object")
    return entry


def text_field(entry: Entry, name: str, *, empty: bool = False) -> str:
    """A field that holds a text.

    Raises:
      UserError: there is none, or another type, or nothing in it.
    """
    if name not in entry:
        shown = ", ".join(list(entry)[:8]) or "none"
        raise UserError(f"no field {name!r}; its fields: {shown}")
    value = entry[name]
    if not isinstance(value, str):
        raise UserError(f"field {name!r} is {_kind(value)}, not a string")
    if not empty and not value.strip():
        raise UserError(f"field {name!r} is empty")
    return value


def list_field(entry: Entry, name: str) -> list[Any]:
    """A field that holds a list which is not empty.

    Raises:
      UserError: there is none, or another type, or nothing in it.
    """
    if name not in entry:
        shown = ", ".join(list(entry)[:8]) or "none"
        raise UserError(f"no field {name!r}; its fields: {shown}")
    value = entry[name]
    if not isinstance(value, list) or not value:
        raise UserError(f"field {name!r} is {_kind(value)}, not a list with messages")
    return value


def read_history(entry: Entry, name: str) -> list[Message]:
    """Earlier turns: ChatGLM's [question, answer] pairs, or messages.

    Raises:
      UserError: something else.
    """
    value = entry.get(name) or []
    if not isinstance(value, list):
        raise UserError(f"field {name!r} is {_kind(value)}, not a list of [question, answer] pairs")
    messages: list[Message] = []
    for i, turn in enumerate(value):
        if isinstance(turn, Mapping):
            messages.append(_located(name, i, turn, Message.of))
        elif isinstance(turn, list) and len(turn) == 2 and all(isinstance(x, str) for x in turn):
            messages += [Message("user", turn[0]), Message("assistant", turn[1])]
        else:
            raise UserError(f"{name}[{i}] is {_kind(turn)}, not a [question, answer] pair of texts")
    return messages


def read_messages(entry: Entry, name: str, one: Callable[[Any], Any]) -> list[Message]:
    """A list of messages, each read by ``one`` into a message or several.

    Raises:
      UserError: one of them is none; the error names its place.
    """
    messages: list[Message] = []
    for i, value in enumerate(list_field(entry, name)):
        made = _located(name, i, value, one)
        messages += made if isinstance(made, list) else [made]
    return messages


def read_tools(entry: Entry) -> Sequence[Mapping[str, Any]] | None:
    """The tools beside a conversation, if there are any.

    Raises:
      UserError: they are none.
    """
    tools = entry.get("tools")
    return check_tools(tools) or None if tools is not None else None


def _prompt_response(reader: Reader, entry: Entry) -> Content:
    prompt, response, history = reader.columns(entry)
    question, answer = text_field(entry, prompt), text_field(entry, response)
    earlier = read_history(entry, history)
    if not earlier:
        return Pair(question, answer)
    return Conversation([*earlier, *Pair(question, answer).conversation().messages])


def _conversations(reader: Reader, entry: Entry) -> Content:
    del reader
    return _checked(read_messages(entry, "conversations", chatglm3_message), entry)


def _messages(reader: Reader, entry: Entry) -> Content:
    del reader
    return _checked(read_messages(entry, "messages", openai_message), entry)


def _seq2seq(reader: Reader, entry: Entry) -> Content:
    source = reader.prompt or "source"
    return Pair(text_field(entry, source), text_field(entry, reader.response or "target"))


def _text(reader: Reader, entry: Entry) -> Content:
    return Text(text_field(entry, reader.text))


_READERS: dict[str, Callable[[Reader, Entry], Content]] = {
    "prompt_response": _prompt_response,
    "conversations": _conversations,
    "messages": _messages,
    "seq2seq": _seq2seq,
    "text": _text,
}
# By which fields a form is known, the first that fits.
_SIGNS: dict[Form, list[tuple[str, ...]]] = {
    "messages": [("messages",)],
    "conversations": [("conversations",)],
    "seq2seq": [("source", "target")],
    "prompt_response": [("prompt",), ("content", "summary")],
}


def chatglm3_message(value: Any) -> Message | list[Message]:
    """A message of ChatGLM3's data; role ``tool`` with a name is a call and what came of it."""
    if not isinstance(value, Mapping) or value.get("role") != "tool" or "name" not in value:
        return Message.of(value)
    name, arguments = value["name"], value.get("parameters")
    if not isinstance(name, str) or not name:
        raise UserError(f"name of a tool is {_kind(name)}; it must be a text")
    if not isinstance(arguments, Mapping):
        raise UserError(f"parameters of {name} are {_kind(arguments)}, no object")
    if "observation" not in value:
        raise UserError(f"a call of {name} has no observation: what the tool gave back")
    given = value["observation"]
    given = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    loss = Message.of({"role": "assistant", "loss": value.get("loss")}).loss
    call = Message("assistant", tool_calls=(ToolCall(name, arguments),), loss=loss)
    return [call, Message("observation", given)]


def openai_message(value: Any) -> Message:
    """A message of GLM-4's or OpenAI's data; OpenAI's ``weight`` 0 leaves a turn unlearned."""
    message = Message.of(value)
    weight = value.get("weight") if isinstance(value, Mapping) else None
    if weight is None or message.loss is not None:
        return message
    if weight not in (0, 1):
        raise UserError(f"weight of a message is {weight!r}; it must be 0 or 1")
    return dataclasses.replace(message, loss=bool(weight))


def _checked(messages: list[Message], entry: Entry) -> Conversation:
    for i, message in enumerate(messages):
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise UserError(f"message {i}: the assistant's answer is empty")
    if not any((m.role == "assistant" and m.loss is not False) or m.loss for m in messages):
        raise UserError("there is no answer of the assistant's to learn")
    return Conversation(messages, read_tools(entry))


def _located(name: str, index: int, value: Any, one: Callable[[Any], Any]) -> Any:
    try:
        return one(value)
    except UserError as error:
        raise UserError(f"{name}[{index}]: {error}") from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    names |= {bool: "true or false", int: "a number", float: "a number"}
    return "an empty list" if value == [] else names.get(type(value), type(value).__name__)
