"""Replies as they come: ids in, text for people out, messages at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from glm_jax.chat import replies
from glm_jax.chat.formats import ChatFormat
from glm_jax.chat.message import Message
from glm_jax.text.stops import StopTexts, begun
from glm_jax.text.tokenizer import IncrementalDecoder, Tokenizer


class ReplyReader:
    """Reads one reply.

    What ``push`` and ``flush`` give, joined, is the text of the plain answers among ``messages()``;
    calls of tools stay out of it. Turns are told apart by the id of ``<|assistant|>``: a model that
    spells its name in letters begins none.

    Args:
      format: of the conversation.
      tools: what the model may call (``parse_replies``).
      stop: texts that end the reply where they begin.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        format: ChatFormat,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stop: Sequence[str] = (),
    ):
        self._tokenizer, self._format, self._tools, self._stop = tokenizer, format, tools, stop
        self._next = tokenizer.special_ids.get(replies.TURN) if format.has_roles else None
        self._done: list[str] = []
        self._shown, self._fresh, self._ended = False, False, False
        self._begin()

    def _begin(self) -> None:
        self._decoder = IncrementalDecoder(self._tokenizer)
        self._texts: list[str] = []
        self._stopper = StopTexts(self._stop)
        self._view: _View = (
            _AfterMetadata() if self._format.has_roles else _Chain(self._format.full_width)
        )

    @property
    def stopped(self) -> bool:
        """Whether a stop text has come: nothing after it is read."""
        return self._stopper.found

    def push(self, ids: Iterable[int]) -> str:
        """Text that these further ids settle."""
        shown = []
        for index in ids:
            if self.stopped:
                break
            if index == self._next:
                shown.append(self._end())
                self._begin()
            else:
                shown.append(self._read(self._decoder.push([index])))
        return "".join(shown)

    def flush(self) -> str:
        """The rest of the text, when the reply has ended; nothing the second time."""
        if self._ended:
            return ""
        self._ended = True
        return self._end()

    def messages(self) -> list[Message]:
        """The reply's messages, after ``flush``; at least one."""
        turn = self._format.turn
        if turn is None:
            return [Message("assistant", self._format.post(text)) for text in self._done]
        return [turn(text, self._tools) for text in self._done]

    def _read(self, decoded: str) -> str:
        text = self._stopper.push(decoded)
        self._texts.append(text)
        return self._apart(self._view.push(text))

    def _end(self) -> str:
        text = "" if self.stopped else self._stopper.push(self._decoder.flush())
        text += self._stopper.flush()
        self._texts.append(text)
        shown = self._apart(self._view.push(text) + self._view.flush())
        self._done.append("".join(self._texts))
        self._fresh = True
        return shown

    def _apart(self, text: str) -> str:
        """With a line break between the answers of two turns."""
        if not text:
            return ""
        apart = "\n" if self._fresh and self._shown else ""
        self._fresh, self._shown = False, True
        return apart + text


class _View(Protocol):
    """Text in, text for people out, as far as it can no longer change."""

    def push(self, text: str) -> str: ...

    def flush(self) -> str: ...


class _Plain:
    """``replies.plain`` of a text that comes in parts."""

    def __init__(self) -> None:
        self._held, self._begun = "", False

    def push(self, text: str) -> str:
        text = self._held + text
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        cut = len(text.rstrip())
        cut -= begun(text[:cut], replies.PLACEHOLDER)
        self._held = text[cut:]
        return text[:cut].replace(replies.PLACEHOLDER, replies.YEAR)

    def flush(self) -> str:
        return self._held.rstrip()


class _Chain:
    """``replies.plain``, and full-width punctuation on top of it where the format has it."""

    def __init__(self, full_width: bool = False):
        self._plain, self._full_width = _Plain(), full_width
        self._before, self._held = "", ""

    def push(self, text: str) -> str:
        return self._widen(self._plain.push(text))

    def flush(self) -> str:
        return self._widen(self._plain.flush()) + self._held

    def _widen(self, text: str) -> str:
        if not self._full_width or not text:
            return text
        # A mark looks at both of its neighbours: the one before the text, and one still to come.
        text = self._before + self._held + text
        wide = replies.full_width(text)
        begin, end = len(self._before), len(text) - (wide[-1] in replies.NARROW)
        self._held = wide[end:]
        self._before = wide[end - 1 : end]
        return wide[begin:end]


class _AfterMetadata:
    """The content of a turn whose line of metadata is empty."""

    def __init__(self) -> None:
        self._line, self._open, self._content = "", True, _Plain()
        self._hidden = False

    def push(self, text: str) -> str:
        if self._open:
            self._line += text
            line, line_break, rest = self._line.partition("\n")
            if not replies.may_be_name(line):
                text = self._line
            elif line_break:
                self._hidden, text = bool(line.strip()), rest
            else:
                return ""
            self._open = False
        return "" if self._hidden else self._content.push(text)

    def flush(self) -> str:
        if self._open:
            return self._content.push(self._line) + self._content.flush()
        return "" if self._hidden else self._content.flush()
