"""Prompts of ChatGLM3-6B and GLM-4: turns that begin with a role token.

Every turn is ``<|role|>``, the line ``{metadata}\\n`` and the content; line and content are
encoded apart, as released. The role tokens are ids put between encoded texts: no text can give one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glm_jax.chat.all_tools import AllTools
from glm_jax.chat.calls import CALL
from glm_jax.chat.message import Message, ToolCall, tool_name
from glm_jax.errors import UserError
from glm_jax.text.tokenizer import Tokenizer

# ChatGLM3's composite demo introduces its tools so (TOOL_PROMPT).
TOOLS_LEAD = (
    "Answer the following questions as best as you can. "
    "You have access to the following tools:"
)  # fmt: skip
_JSON = {"ensure_ascii": False, "indent": 4}


Turns = list[tuple[Message, list[int]]]
"""What is written for a conversation: the message behind each turn, and the turn's ids."""


def chatglm3(messages: Sequence[Message], tokenizer: Tokenizer) -> Turns:
    """Turns of ChatGLM3; a system turn's tools follow its content as JSON.

    Source: build_chat_input and build_single_message of the release's tokenization_chatglm.py.
    """
    turns: Turns = []
    for message in _spelled_out(messages, _fenced):
        content = message.content
        if message.role == "system" and message.tools is not None:
            content += "\n" + json.dumps([_flat(t) for t in message.tools], **_JSON)
        turns.append((message, turn(tokenizer, message.role, message.metadata, content)))
    return turns


def glm4(messages: Sequence[Message], tokenizer: Tokenizer, all_tools: AllTools) -> Turns:
    """Turns of GLM-4; a message's tools are introduced in a system turn of their own before it.

    A message without content gives no turn. Source: apply_chat_template of the release's
    tokenization_chatglm.py.
    """
    turns: Turns = []
    for message in _spelled_out(messages, _as_json):
        if message.tools:
            text = all_tools.text(message.tools)
            turns.append((Message("system", text), turn(tokenizer, "system", "", text)))
        if message.content:
            ids = turn(tokenizer, message.role, message.metadata, message.content)
            turns.append((message, ids))
    return turns


def start(tokenizer: Tokenizer) -> list[int]:
    """What stands before the first turn."""
    return list(tokenizer.special.require("gmask", "sop"))


def chatglm3_tools(messages: Sequence[Message], tools: Sequence[Any]) -> list[Message]:
    """The conversation with these tools in its system turn, in the words of the release's demo,
    which files for its fine-tuning already hold."""
    head, rest = _split_system(messages)
    content = head.content.rstrip()
    if not content.endswith(TOOLS_LEAD):
        content = f"{head.content}\n{TOOLS_LEAD}" if head.content else TOOLS_LEAD
    return [Message("system", content, tools=tools), *rest]


def glm4_tools(messages: Sequence[Message], tools: Sequence[Any]) -> list[Message]:
    """The conversation with these tools in its system turn."""
    head, rest = _split_system(messages)
    return [Message("system", head.content, tools=tools), *rest]


def _split_system(messages: Sequence[Message]) -> tuple[Message, Sequence[Message]]:
    if not messages or messages[0].role != "system":
        return Message("system"), messages
    if messages[0].tools:
        raise UserError("tools are given twice: in the system message and beside the conversation")
    return messages[0], messages[1:]


def opening(tokenizer: Tokenizer, call: str | None = None) -> list[int]:
    """``<|assistant|>``: the model goes on from here, with a call of that tool if one is named."""
    ids = [role_id(tokenizer, "assistant")]
    return ids if call is None else ids + _encode(tokenizer, f"{call}\n")


def turn(tokenizer: Tokenizer, role: str, metadata: str, content: str) -> list[int]:
    """The ids of one turn."""
    line = _encode(tokenizer, f"{metadata}\n")
    return [role_id(tokenizer, role), *line, *_encode(tokenizer, content)]


def role_id(tokenizer: Tokenizer, role: str) -> int:
    """The id of a role's token.

    Raises:
      UserError: the vocabulary has none.
    """
    index = tokenizer.special_ids.get(f"<|{role}|>")
    if index is None:
        raise UserError(
            f"the tokenizer of {tokenizer.family} has no <|{role}|> token, which this chat format "
            "is made of"
        )
    return index


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _spelled_out(messages: Sequence[Message], written: Callable[[ToolCall], str]) -> list[Message]:
    """With a turn of its own for each call of a client's message, which has no metadata."""
    turns = []
    for message in messages:
        if not message.tool_calls or message.metadata:
            turns.append(message)
            continue
        alone = dataclasses.replace(message, tool_calls=None)
        if message.content:
            turns.append(alone)
        turns += [
            dataclasses.replace(alone, content=c.text or written(c), metadata=c.name)
            for c in message.tool_calls
        ]
    return turns


def _fenced(call: ToolCall) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in (call.arguments or {}).items())
    return f"```python\n{CALL}({arguments})\n```"


def _as_json(call: ToolCall) -> str:
    return json.dumps(dict(call.arguments or {}), ensure_ascii=False)


def _flat(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """ChatGLM3 lists functions without OpenAI's wrapping."""
    function = tool.get("function")
    return function if isinstance(function, Mapping) and tool_name(tool) else tool
