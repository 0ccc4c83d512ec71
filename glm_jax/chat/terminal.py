"""Chat at a terminal: questions in, answers as they come, commands that begin with a slash."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from glm_jax.chat.message import Message
from glm_jax.chat.session import Chat
from glm_jax.errors import UserError
from glm_jax.terminal import notice, printable

HELP = """\
Type a question; a line that ends with \\ goes on in the next one. Ctrl-C stops an answer,
Ctrl-D or /quit leaves. A question that begins with a slash is written with two.

  /help           this text
  /undo           take back the last question and its answer
  /retry          another answer to the last question
  /clear          forget the conversation; the system's text stays
  /system TEXT    set the system's text; without TEXT, show it
  /observe TEXT   what a tool returned, for the model to go on with
  /history        the conversation so far
  /set NAME VALUE a setting, such as temperature 0.5; without them, show all
  /usage          tokens of the last answer
  /save FILE      write the conversation as JSON
  /load FILE      go on with a saved conversation
  /quit           leave
"""


def converse(chat: Chat) -> None:
    """Reads questions until the input ends, and prints the answers."""
    _Terminal(chat).run()


class _Terminal:
    def __init__(self, chat: Chat):
        self._chat, self._person = chat, sys.stdin.isatty()
        self._answered = False
        self._commands: dict[str, Callable[[str], object]] = {
            "help": lambda _: print(HELP, end=""),
            "undo": self._undo,
            "retry": lambda _: self._answer(chat.stream_retry()),
            "clear": lambda _: chat.clear(),
            "system": self._system,
            "observe": lambda text: self._answer(chat.stream(Message("observation", text))),
            "history": lambda _: self._history(),
            "set": self._set,
            "usage": lambda _: self._usage(),
            "save": self._save,
            "load": self._load,
        }

    def run(self) -> None:
        if self._person:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (arrow keys and history in input())
            print(f"{self._chat.format.name}. /help lists the commands.")
            if self._chat.rereads:
                print(textwrap.fill(f"Note: {self._chat.rereads}.", 80))
        while (line := self._read()) is not None:
            try:
                if not self._do(line):
                    return
            except (UserError, OSError) as error:
                print(f"error: {error}", file=sys.stderr, flush=True)

    def _read(self) -> str | None:
        """A question of one line or several; None at the end."""
        lines: list[str] = []
        try:
            while True:
                prompt = ("> " if not lines else ". ") if self._person else ""
                line = input(prompt)
                if not line.endswith("\\"):
                    return "\n".join([*lines, line])
                lines.append(line[:-1])
        except EOFError:
            if self._person:
                print()
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            if not self._person:
                return None
            print("\n(Ctrl-D or /quit leaves)")
            return ""
        except UnicodeDecodeError:
            print("error: that was no UTF-8 text", file=sys.stderr, flush=True)
            return ""

    def _do(self, line: str) -> bool:
        """Whether to go on after this line."""
        if not line.strip():
            return True
        if not line.startswith("/") or line.startswith("//"):
            self._answer(self._chat.stream(line.removeprefix("/")))
            return True
        name, _, rest = line[1:].partition(" ")
        if name in ("quit", "exit"):
            return False
        if name not in self._commands:
            raise UserError(f"/{printable(name)} is no command; /help lists them")
        self._commands[name](rest.strip())
        return True

    def _answer(self, pieces: Iterator[str]) -> None:
        """Prints an answer as it comes; Ctrl-C ends it, and what there is of it stays."""
        before = self._chat.history
        with _interrupts() as interrupted:
            try:
                for piece in self._first_is_slow(pieces):
                    print(printable(piece), end="", flush=True)
                    if interrupted:
                        break
            except KeyboardInterrupt:
                interrupted.append(True)
            finally:
                pieces.close()  # pyrefly: ignore[missing-attribute]
        print(" [stopped]" if interrupted else "", flush=True)
        if self._chat.history is not before:
            self._calls()

    def _first_is_slow(self, pieces: Iterator[str]) -> Iterator[str]:
        if not self._answered:
            with notice("compiling for the first answer ..."):
                first = next(pieces, "")
            self._answered = True
            yield first
        yield from pieces

    def _calls(self) -> None:
        """Says what the model wants to be done, and what was wrong with it."""
        for message in _latest(self._chat.history):
            for call in message.tool_calls or ():
                given = call.text if call.arguments is None else _json(dict(call.arguments))
                print(printable(f"[call of {call.name}: {given.strip()}]"))
            if message.error:
                print(printable(f"[{message.error}]\n{message.content}"))
            elif message.metadata.strip() and not message.tool_calls:
                print(printable(f"[{message.metadata.strip()}]\n{message.content}"))
        if self._chat.history[-1].tool_calls and self._person:
            print("(/observe TEXT gives the result)")

    def _undo(self, _: str) -> None:
        taken = self._chat.undo()
        print(f"took back: {printable(taken[0].content[:60])}")

    def _system(self, text: str) -> None:
        if text:
            self._chat.system = text
        print(f"system: {printable(self._chat.system or '(none)')}")

    def _history(self) -> None:
        for message in self._chat.messages:
            line = f"{message.role} {message.metadata}".strip()
            print(printable(f"{line}: {message.text}"))

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        settings: dict[str, Any] = self._chat.sampling
        if name in SETTINGS:
            try:
                number = SETTINGS[name](value)
            except ValueError:
                raise UserError(f"{name} {value!r} is no number") from None
            if name in ("max_new_tokens", "seed"):
                setattr(self._chat, name, number)
            else:
                settings[name] = number
        elif name:
            raise UserError(f"{name!r} is no setting; there are {', '.join(SETTINGS)}")
        shown = settings | {n: getattr(self._chat, n) for n in ("max_new_tokens", "seed")}
        print(", ".join(f"{n} {v}" for n, v in shown.items()))

    def _usage(self) -> None:
        usage = self._chat.usage
        if usage is None:
            raise UserError("nothing was asked yet")
        again = f", {usage.reused} of them still in the cache" if usage.reused else ""
        print(f"{usage.prompt} tokens read{again}; {usage.answer} written")

    def _save(self, name: str) -> None:
        if not name:
            raise UserError("/save needs the name of a file")
        text = json.dumps([m.as_dict() for m in self._chat.messages], ensure_ascii=False, indent=2)
        Path(name).write_text(text + "\n", encoding="utf-8")
        print(f"wrote {len(self._chat.messages)} messages to {name}")

    def _load(self, name: str) -> None:
        if not name:
            raise UserError("/load needs the name of a file")
        try:
            saved = json.loads(Path(name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{name} is no JSON: {error}") from None
        if not isinstance(saved, list):
            raise UserError(f"{name} holds no list of messages")
        self._chat.restore(saved)
        print(f"read {len(self._chat.messages)} messages")


SETTINGS: dict[str, Callable[[str], float]] = {
    "temperature": float, "top_p": float, "top_k": int, "min_p": float,
    "repetition_penalty": float, "no_repeat_ngram": int, "max_new_tokens": int, "seed": int,
}  # fmt: skip


def _latest(history: list[Message]) -> list[Message]:
    """The messages of the last answer."""
    begin = len(history)
    while begin and history[begin - 1].role == "assistant":
        begin -= 1
    return history[begin:]


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


@contextlib.contextmanager
def _interrupts() -> Iterator[list[bool]]:
    """A list that Ctrl-C puts something into.

    The first one only asks: interrupting the generation in the middle of a step would lose the
    cache. A second one interrupts all the same, for a step that takes very long.
    """
    asked: list[bool] = []

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
