"""Reading the tool calls that models write. Nothing is ever executed: literals and JSON only."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

CALL = "tool_call"
_LONGEST = 100_000  # characters; ast would need gigabytes for a text of many megabytes
_FENCE = re.compile(r"\s*```[\w+-]*[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


class MalformedCallError(ValueError):
    """A call that cannot be read; the message says why."""


def python_call(text: str) -> dict[str, Any]:
    """The arguments of ChatGLM3's ``tool_call(name=literal, ...)``, with or without its fence.

    Raises:
      MalformedCallError: it is anything else: other code, positional arguments, a value that is no
        literal.
    """
    code = fenced(text)
    if len(code) > _LONGEST:
        raise MalformedCallError(f"the call is {len(code)} characters long")
    try:
        tree = ast.parse(code.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise MalformedCallError(f"it is no Python expression: {_reason(error)}") from None
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise MalformedCallError(f"it is no {CALL}(...)")
    if tree.func.id != CALL:
        raise MalformedCallError(f"it calls {tree.func.id[:40]}, not {CALL}")
    if tree.args:
        raise MalformedCallError("an argument has no name")
    names = [keyword.arg for keyword in tree.keywords]
    if len(set(names)) < len(names):
        raise MalformedCallError("an argument is repeated")
    return dict(_argument(keyword) for keyword in tree.keywords)


def _argument(keyword: ast.keyword) -> tuple[str, Any]:
    if keyword.arg is None:
        raise MalformedCallError("** stands for no arguments here")
    try:
        value = ast.literal_eval(keyword.value)
        # Ellipsis, bytes, sets and complex numbers are literals, but no JSON can hold them.
        return keyword.arg, json.loads(json.dumps(value, allow_nan=False))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise MalformedCallError(f"the value of {keyword.arg} is no literal") from None


def json_call(text: str) -> dict[str, Any]:
    """The arguments of GLM-4's call: a JSON object.

    Raises:
      MalformedCallError: it is anything else.
    """
    if len(text) > _LONGEST:
        raise MalformedCallError(f"the call is {len(text)} characters long")
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedCallError(f"its arguments are no JSON: {_reason(error)}") from None
    if not isinstance(value, dict):
        raise MalformedCallError(f"its arguments are a JSON {type(value).__name__}, no object")
    return value


def fenced(text: str) -> str:
    """What a code fence holds; the text itself where there is none."""
    found = _FENCE.fullmatch(text)
    return found[1] if found else text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
