"""What a conversation is made of: messages, and the tool calls inside them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from glm_jax.errors import UserError

ROLES = ("system", "user", "assistant", "observation")
# OpenAI's names for the same roles.
_ALIASES = {"tool": "observation", "function": "observation", "developer": "system"}


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call of a tool by the model.

    Attributes:
      name: of the tool.
      arguments: by name; None where the tool takes plain text, as a code interpreter does.
      text: what the model wrote for the call, such as a Python fence or a JSON object. Without it a
        prompt writes the arguments in its own format.
      id: what a client calls it by, in OpenAI's dialect; no prompt contains it.
    """

    name: str
    arguments: Mapping[str, Any] | None = None
    text: str = ""
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    >>> Message("user", "What does 10111 cost?")
    >>> Message("assistant", "```python\\ntool_call(symbol='10111')\\n```", metadata="track")
    >>> Message("observation", '{"price": 12412}')

    Attributes:
      role: system, user, assistant or observation (what a tool gave back; OpenAI's "tool").
      content: the text as the model reads or wrote it.
      metadata: the rest of the role's line, in the formats that have one: the tool that an
        assistant's turn is for.
      tools: of a system turn: the tools that it introduces.
      tool_calls: of an assistant's turn: the calls in it.
      name: whom a client says it is from; no prompt contains it.
      tool_call_id: of an observation: the call that it answers; no prompt contains it.
      error: of an assistant's turn: what is wrong with the call that it attempts.
      loss: in training, whether the model learns to write this turn; None: if it is the
        assistant's. No prompt contains it.

    Raises:
      UserError: the role is unknown, or the metadata has a line break.
    """

    role: str
    content: str = ""
    metadata: str = ""
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    name: str = ""
    tool_call_id: str = ""
    error: str = ""
    loss: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "role", _ALIASES.get(self.role, self.role))
        if self.role not in ROLES:
            known = ", ".join([*ROLES, *_ALIASES])
            raise UserError(f"role {self.role!r} is unknown; choose one of {known}")
        if "\n" in self.metadata:
            raise UserError(f"metadata {self.metadata!r} has a line break; it is a single line")

    @property
    def text(self) -> str:
        """The content for people: releases put a year where the model wrote a placeholder."""
        return self.content.replace("[[训练时间]]", "2023年")

    @classmethod
    def of(cls, value: Message | Mapping[str, Any]) -> Message:
        """A message from a dict: one of ``as_dict``, of the released code's, or of OpenAI's.

        Raises:
          UserError: it has no role, or a part of it is of another type; the message names it.
        """
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
            raise UserError(f"a message is a dict with a role, not {_shown(value)}")
        texts = {}
        for key in ("metadata", "name", "tool_call_id", "error"):
            texts[key] = value.get(key) or ""
            if not isinstance(texts[key], str):
                raise UserError(f"{key} of a message is {_shown(texts[key])}; it must be a text")
        tools, calls = value.get("tools"), value.get("tool_calls")
        return cls(
            value["role"],
            _content(value.get("content")),
            tools=None if tools is None else check_tools(tools),
            tool_calls=tuple(_call(call) for call in _list(calls, "tool_calls")) or None,
            loss=_loss(value.get("loss")),
            **texts,
        )

    def as_dict(self) -> dict[str, Any]:
        """Its parts that are not empty; ``Message.of`` reads them."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.tool_calls:
            parts["tool_calls"] = [dataclasses.asdict(call) for call in self.tool_calls]
        return {k: v for k, v in parts.items() if v or k in ("role", "content") or v is False}


def conversation(messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
    """Messages from messages and dicts.

    Raises:
      UserError: one is no message; the error names its place.
    """
    if isinstance(messages, str | Message | Mapping):
        raise UserError(f"a conversation is a list of messages, not {_shown(messages)}")
    found = []
    for i, message in enumerate(messages):
        try:
            found.append(Message.of(message))
        except UserError as error:
            raise UserError(f"message {i}: {error}") from None
    return found


def check_tools(tools: Any) -> list[Mapping[str, Any]]:
    """A list of tools, each a dict with a name or with OpenAI's type.

    Raises:
      UserError: it is something else.
    """
    for tool in _list(tools, "tools"):
        if not isinstance(tool, Mapping):
            raise UserError(f"a tool is a dict, not {_shown(tool)}")
        if tool.get("type", "function") == "function" and not tool_name(tool):
            raise UserError(f"a tool has no name: {_shown(tool)}")
    return list(tools)


def tool_name(tool: Mapping[str, Any]) -> str:
    """The name by which a model calls a tool; empty if it has none."""
    function = tool.get("function")
    name = (function if isinstance(function, Mapping) else tool).get("name")
    if tool.get("type", "function") != "function":
        name = tool["type"]
    return name if isinstance(name, str) else ""


def _content(content: Any) -> str:
    """A text, or the texts of OpenAI's list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = _list(content, "content")
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise UserError(f"content is {_shown(part)}; only text can be read")
    return "".join(part["text"] for part in parts)


def _loss(loss: Any) -> bool | None:
    if loss is not None and not isinstance(loss, bool):
        raise UserError(f"loss of a message is {_shown(loss)}; it must be true or false")
    return loss


def _call(call: Any) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f"a tool call is a dict with a function's name, not {_shown(call)}")
    arguments, text = function.get("arguments"), call.get("text") or ""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"arguments of {function['name']} are no JSON: {error}") from None
    if arguments is not None and not isinstance(arguments, Mapping):
        raise UserError(f"arguments of {function['name']} are {_shown(arguments)}, no JSON object")
    if not isinstance(text, str):
        raise UserError(f"text of a tool call is {_shown(text)}; it must be a text")
    return ToolCall(function["name"], arguments, text, str(call.get("id") or ""))


def _list(value: Any, name: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise UserError(f"{name} is {_shown(value)}; it must be a list")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
