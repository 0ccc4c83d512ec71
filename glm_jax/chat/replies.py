"""What a model wrote, read back: post-processing, metadata, tool calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glm_jax.chat.all_tools import BUILT_IN
from glm_jax.chat.calls import MalformedCallError, json_call, python_call
from glm_jax.chat.message import Message, ToolCall, tool_name

TURN = "<|assistant|>"
PLACEHOLDER, YEAR = "[[训练时间]]", "2023年"
INTERPRETER = "interpreter"
NARROW = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
_HAN = "[\u4e00-\u9fff]"
_NARROW = re.compile(f"(?<={_HAN})[,!:;?]|[,!:;?](?={_HAN})")
_NAME = re.compile(r"\s*[\w./:-]{0,64}\s*")

Tools = Sequence[Mapping[str, Any]]


def tidy(text: str) -> str:
    """ChatGLM-6B v1.1's post-processing: full-width punctuation beside Chinese characters."""
    return full_width(plain(text))


def full_width(text: str) -> str:
    """With full-width punctuation beside Chinese characters, one character for one."""
    return _NARROW.sub(lambda mark: NARROW[mark[0]], text)


def plain(text: str) -> str:
    """ChatGLM-6B v1.0's and ChatGLM2's."""
    return text.strip().replace(PLACEHOLDER, YEAR)


def may_be_name(line: str) -> bool:
    """Whether the first line of a turn can be metadata: nothing, or a tool's name.

    The released code takes any first line for metadata; a sentence there is an answer whose model
    forgot the line, and is better shown than hidden.
    """
    return _NAME.fullmatch(line) is not None


def turn(text: str, read_call: Callable[[str], dict[str, Any]], tools: Tools | None) -> Message:
    """One assistant's turn: its line of metadata and its content.

    Args:
      read_call: a call's arguments; raises MalformedCallError.
      tools: those that the model may call. None: unknown, what reads as a call is one.
    """
    metadata, line_break, content = text.partition("\n")
    if not line_break or not may_be_name(metadata):
        metadata, content = "", text
    name = metadata.strip()
    if not name:
        return Message("assistant", content.strip(), metadata)
    known = None if tools is None else [tool_name(tool) for tool in tools]
    if name == INTERPRETER or (name in BUILT_IN and (known is None or name in known)):
        call = ToolCall(name, None, content)
        return Message("assistant", content, metadata, tool_calls=(call,))
    try:
        if known is not None and name not in known:
            raise MalformedCallError(
                f"there is no such tool; there are {', '.join(known) or 'none'}"
            )
        call = ToolCall(name, read_call(content), content)
        return Message("assistant", content, metadata, tool_calls=(call,))
    except MalformedCallError as error:
        # Without tools a first line of one word may as well be the answer's own.
        said = "" if known is None else f"the call of {name} cannot be read: {error}"
        return Message("assistant", content, metadata, error=said)


def chatglm3_turn(text: str, tools: Tools | None) -> Message:
    return turn(text, python_call, tools)


def glm4_turn(text: str, tools: Tools | None) -> Message:
    return turn(text, json_call, tools)
