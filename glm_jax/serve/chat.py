"""``/v1/chat/completions``."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import anyio
from fastapi import Request as HttpRequest

from glm_jax.chat import Message, ToolCall, parse_reply, render
from glm_jax.chat.message import check_tools, tool_name
from glm_jax.chat.streaming import ReplyReader
from glm_jax.serve.engine import Engine
from glm_jax.serve.errors import ApiError
from glm_jax.serve.parameters import ChatRequest
from glm_jax.serve.replies import Answers, Delta, Reader, Row, TextReader, token_entry
from glm_jax.serve.request import Token
from glm_jax.serve.served import Served
from glm_jax.serve.sse import collected, streamed


class ChatCall:
    """One request for a chat answer, from its body to OpenAI's objects."""

    def __init__(self, served: Served, body: ChatRequest):
        served.check_model(body.model)
        if served.format is None:
            raise ApiError(
                400, f"{served.no_chat}; POST /v1/completions continues texts", "messages"
            )
        self._served, self._body, self._format = served, body, served.format
        self._tools, self._call = _chosen_tools(body)
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._prompt: list[int] = []

    def rows(self) -> list[Row]:
        """The rows to write; encodes the conversation, which takes a while if it is long.

        Raises:
          UserError, ApiError: the conversation is not one, or is too long.
        """
        body = self._body
        self._prompt = render(
            body.messages, self._served.tokenizer,
            format=self._format.name, tools=self._tools or None, call=self._call,
        )  # fmt: skip
        likely = body.top_logprobs or 0 if body.logprobs else 0
        requests = self._served.requests(self._prompt, body, body.most, likely)
        return [Row(request, self._reader()) for request in requests]

    def _reader(self) -> Reader:
        tokenizer, stop = self._served.tokenizer, self._body.stop
        if self._call is not None:  # all that comes is the call's arguments
            return TextReader(tokenizer, stop)
        return ReplyReader(tokenizer, self._format, self._tools, stop)

    def outcome(self, row: Row) -> tuple[str, list[ToolCall]]:
        """What is to be said at the end, beside the text that was already, and the tool calls."""
        if self._call is not None:
            text = f"{self._call}\n{row.text}"
            messages = [parse_reply(text, self._format.name, self._tools)]
        else:
            assert isinstance(row.reader, ReplyReader)
            messages = row.reader.messages()
        calls = [call for message in messages for call in message.tool_calls or ()]
        shown = "" if self._call is not None else row.text
        return ("" if calls or shown else _said(messages), calls)

    def whole(self, answers: Answers, logprobs: Sequence[Sequence[Token]], reasons) -> dict:
        """The answer as one object."""
        choices = []
        for i, row in enumerate(answers.rows):
            late, calls = self.outcome(row)
            text = late or ("" if self._call is not None else row.text)
            message: dict[str, Any] = {"role": "assistant", "content": text or None}
            if calls:
                message["tool_calls"] = [_call_object(call) for call in calls]
            else:
                message["content"] = text
            choices.append({
                "index": i,
                "message": message,
                "logprobs": self._logprobs(logprobs[i]),
                "finish_reason": _reason(reasons[i], calls),
            })  # fmt: skip
        return self._head("chat.completion") | {"choices": choices, "usage": self._usage(answers)}

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        """The answer in pieces."""
        for i in range(len(answers.rows)):
            yield self._chunk(i, {"role": "assistant", "content": ""})
        async for i, delta in answers:
            if delta.reason == "error":
                raise ApiError(500, delta.error)
            text = "" if self._call is not None else delta.text
            if text or (self._body.logprobs and delta.tokens):
                yield self._chunk(i, {"content": text}, self._logprobs(delta.tokens))
            if delta.reason is not None:
                for chunk in self._end(i, answers.rows[i], delta):
                    yield chunk
        if (options := self._body.stream_options) and options.include_usage:
            usage = {"choices": [], "usage": self._usage(answers)}
            yield self._head("chat.completion.chunk") | usage

    def _end(self, index: int, row: Row, delta: Delta) -> list[dict[str, Any]]:
        late, calls = self.outcome(row)
        chunks = [self._chunk(index, {"content": late})] if late else []
        if calls:
            objects = [{"index": i} | _call_object(call) for i, call in enumerate(calls)]
            chunks.append(self._chunk(index, {"tool_calls": objects}))
        return [*chunks, self._chunk(index, {}, reason=_reason(delta.reason, calls))]

    def _chunk(self, index: int, delta: dict, logprobs=None, reason: str | None = None) -> dict:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id, "object": kind, "created": self._created, "model": self._served.name
        }  # fmt: skip

    def _usage(self, answers: Answers) -> dict[str, int]:
        return usage([self._prompt], answers)

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        entry = lambda *of: token_entry(self._served.tokenizer, *of)
        return {
            "content": [
                entry(t.id, t.logprob)
                | {"top_logprobs": [entry(*pair) for pair in t.likely if pair[1] > -1e30]}
                for t in tokens
            ]
        }


def usage(prompts: Sequence[Sequence[int]], answers: Answers) -> dict[str, int]:
    """Tokens that were read and written; each prompt counts once."""
    read, written = sum(map(len, prompts)), sum(row.count for row in answers.rows)
    return {
        "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written
    }  # fmt: skip


async def chat_completions(engine: Engine, served: Served, body: ChatRequest, http: HttpRequest):
    """An answer to a conversation, whole or as server-sent events."""
    call = ChatCall(served, body)
    rows = await anyio.to_thread.run_sync(call.rows)
    answers = Answers(engine, rows)
    if body.stream:
        return streamed(call.chunks(answers), answers, http)
    return call.whole(answers, *await collected(answers, http))


def _chosen_tools(body: ChatRequest) -> tuple[list[Mapping[str, Any]], str | None]:
    """The tools that the model is told of, and the one that it must call.

    Raises:
      ApiError: tool_choice names none of them.
      UserError: tools are no tools.
    """
    tools, choice = check_tools(body.tools or []), body.tool_choice
    if choice == "none":
        return [], None
    if choice in (None, "auto"):
        return tools, None
    names = [tool_name(tool) for tool in tools]
    wanted = names[0] if choice == "required" and len(names) == 1 else None
    if isinstance(choice, dict):
        wanted = tool_name(choice)
    if wanted is None or wanted not in names:
        raise ApiError(
            400,
            f"tool_choice {json.dumps(choice)} names none of the tools "
            f"({', '.join(names) or 'there are none'}); give auto, none or one of them; required "
            "works with a single tool",
            "tool_choice",
        )
    return tools, wanted


def _said(messages: Sequence[Message]) -> str:
    """What a reply holds that is neither plain text nor a call: what is wrong with it, and it."""
    parts = []
    for message in messages:
        head = f"{message.metadata}\n" if message.metadata.strip() else ""
        if text := (head + message.content).strip():
            parts.append(f"{message.error}\n{text}" if message.error else text)
    return "\n".join(parts)


def _call_object(call: ToolCall) -> dict[str, Any]:
    # A code interpreter's call is plain text; OpenAI's form knows arguments only.
    arguments = {"code": call.text} if call.arguments is None else dict(call.arguments)
    function = {"name": call.name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _reason(reason: str | None, calls: Sequence[ToolCall]) -> str | None:
    return "tool_calls" if calls and reason == "stop" else reason
