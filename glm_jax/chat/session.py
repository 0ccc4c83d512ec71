"""A conversation with a model: ``glm_jax.Chat``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from glm_jax.chat.all_tools import RELEASED, AllTools
from glm_jax.chat.formats import ChatFormat, chat_format, render
from glm_jax.chat.message import Message, check_tools, conversation
from glm_jax.chat.streaming import ReplyReader
from glm_jax.config import GLMConfig
from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.text.generate import Remembered, stream
from glm_jax.text.prepare import prepare
from glm_jax.text.tokenizer import Tokenizer

MOST_NEW_TOKENS = 2048
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "no_repeat_ngram")


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of the last answer.

    Attributes:
      prompt: of the whole conversation before it.
      reused: those of them that were still in the cache from an earlier turn.
      answer: that were generated, without the one that stopped it.
      stopped: whether it came to its end: not cut off by its length, or by its reader.
    """

    prompt: int
    reused: int
    answer: int
    stopped: bool


class Chat:
    """A conversation that remembers itself.

    >>> model, tok = glm_jax.load("ckpt/"), glm_jax.load_tokenizer("ckpt/")
    >>> chat = glm_jax.Chat(model, tok)
    >>> chat.send("你好").text
    >>> for piece in chat.stream("And in English?"):
    ...     print(piece, end="", flush=True)

    A causal model reads only what is new in each turn. A model that reads its prompt in both
    directions reads all of it again: ``rereads`` says so.

    Args:
      system: text for the system's turn.
      tools: what the model may call; its calls come back as ``tool_calls`` of a message, and
        ``observe`` gives it a result.
      generation: contents of ``generation.json`` (``glm_jax.ckpts.load_generation``): stop ids,
        sampling and prompt format. Without it, those of the release.
      format: name of the chat format; ``generation``'s or the tokenizer's family by default.
      max_new_tokens: of an answer; fewer where the model's positions end.
      stop: texts that end an answer.
      seed: of the sampling. The same turns in the same order give the same texts.
      every: how many tokens to generate between two pieces of a stream.
      sampling: ``temperature`` and the others of ``glm_jax.generate``, in place of the release's.
      all_tools: the variant of GLM-4's text about its tools.

    Raises:
      UserError: the model has no chat format, the tools do not suit it, or a setting is unknown.
    """

    def __init__(
        self,
        model: GLM,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation: Mapping[str, Any] | None = None,
        format: str | None = None,
        max_new_tokens: int = MOST_NEW_TOKENS,
        stop: Sequence[str] = (),
        seed: int = 0,
        every: int = 4,
        all_tools: AllTools = RELEASED,
        **sampling: float | None,
    ):
        generation = generation or {}
        name = format or generation.get("prompt_format") or tokenizer.family
        self.format: ChatFormat = chat_format(name)
        self.model, self.tokenizer, self.all_tools = model, tokenizer, all_tools
        self.system = system
        self.tools = None if tools is None else check_tools(tools)
        self.history: list[Message] = []
        self.max_new_tokens, self.every, self.seed = max_new_tokens, every, seed
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        self.stop_ids = turn_ends(model.config, tokenizer, self.format, generation)
        self.sampling = _sampling(self.format, generation) | _known(sampling)
        self.usage: Usage | None = None
        self._remembered, self._answers = Remembered(), 0
        if self.tools and not self.format.has_roles:
            raise UserError(f"the prompts of {self.format.name} have no tools")

    @property
    def rereads(self) -> str:
        """Why every turn reads the whole conversation again; empty if it does not."""
        if not self.model.config.prefix_lm:
            return ""
        return (
            f"{self.format.name} reads its prompt in both directions: a new turn changes what "
            "every earlier token has seen, so nothing that was read can be kept"
        )

    @property
    def messages(self) -> list[Message]:
        """The system's turn and the history: what a prompt is made of."""
        return [*([Message("system", self.system)] if self.system else []), *self.history]

    def send(self, message: str | Message) -> Message:
        """Asks, and gives the answer's last message; what came before it is in ``history``.

        Args:
          message: a user's text, or a message.

        Raises:
          UserError: the prompt cannot hold the message, or the conversation has become too long.
        """
        return self._drained(self.stream(message))

    def stream(self, message: str | Message) -> Iterator[str]:
        """Asks, and gives the answer's text in pieces as it is generated.

        Question and answer enter the history with the last piece. Closing the iterator stops the
        answer; what there is of it is kept.

        Raises:
          UserError: as ``send``; before the first piece is asked for.
        """
        question = Message("user", message) if isinstance(message, str) else message
        return self._answer(self.history, [question])

    def observe(self, text: str, metadata: str = "") -> Message:
        """Gives the model what a tool returned, and gives back its answer.

        Raises:
          UserError: as ``send``.
        """
        return self.send(Message("observation", text, metadata))

    def retry(self) -> Message:
        """Takes back the last answer and asks for another one; sampled with a further seed.

        Raises:
          UserError: nothing was asked.
        """
        return self._drained(self.stream_retry())

    def stream_retry(self) -> Iterator[str]:
        """As ``retry``, in pieces; the old answer stays until the new one is there."""
        asked = next(
            (i for i in reversed(range(len(self.history))) if self.history[i].role != "assistant"),
            None,
        )
        if asked is None:
            raise UserError("there is no question to answer again")
        return self._answer(self.history[:asked], [self.history[asked]])

    def undo(self) -> list[Message]:
        """Takes back the last question with all that followed, and gives what it took.

        Raises:
          UserError: nothing was asked.
        """
        roles = [message.role for message in self.history]
        if "user" not in roles:
            raise UserError("there is nothing to undo")
        begin = len(roles) - 1 - roles[::-1].index("user")
        taken, self.history = self.history[begin:], self.history[:begin]
        return taken

    def clear(self) -> None:
        """Forgets the history; the system's text and the tools stay."""
        self.history = []

    def restore(self, messages: Iterable[Message | Mapping[str, Any]]) -> None:
        """Puts a saved conversation in place of this one: ``as_dict`` of each of ``messages``.

        Raises:
          UserError: it is no list of messages.
        """
        turns = conversation(messages)
        head = turns.pop(0) if turns and turns[0].role == "system" and not turns[0].tools else None
        self.system, self.history = (head.content if head else None), turns

    def _drained(self, pieces: Iterator[str]) -> Message:
        for _ in pieces:
            pass
        return self.history[-1]

    def _answer(self, before: list[Message], question: list[Message]) -> Iterator[str]:
        """Checks what can be checked, and leaves the rest to the iterator."""
        asked = [*before, *question]
        head = [Message("system", self.system)] if self.system else []
        prompt = render(
            [*head, *asked], self.tokenizer,
            format=self.format.name, tools=self.tools, all_tools=self.all_tools,
        )  # fmt: skip
        room = self.model.config.max_seq_len - len(prompt)
        if room < 1:
            raise UserError(
                f"the conversation has become {len(prompt)} tokens long, and this model reads "
                f"{len(prompt) + room}: undo turns, or clear it"
            )
        return self._pieces(asked, prompt, min(room, self.max_new_tokens))

    def _pieces(self, asked: list[Message], prompt: list[int], most: int) -> Iterator[str]:
        reader = ReplyReader(self.tokenizer, self.format, self.tools, self.stop)
        count, ended = 0, False
        ids = self._generate(prompt, most)
        try:
            for some in ids:
                count += len(some)
                if text := reader.push(some):
                    yield text
                if reader.stopped:
                    break
            ended = reader.stopped or count < most
            if text := reader.flush():
                yield text
        except (GeneratorExit, KeyboardInterrupt) as stop:
            if isinstance(stop, KeyboardInterrupt):
                # It may have come while the cache was being handed over.
                self._remembered = Remembered()
            reader.flush()
            if count:  # otherwise there is no answer to keep, and so no question
                self._keep(asked, reader, Usage(len(prompt), self._remembered.reused, count, ended))
            raise
        except BaseException:
            self._remembered = Remembered()
            raise
        finally:
            ids.close()  # pyrefly: ignore[missing-attribute]
        self._keep(asked, reader, Usage(len(prompt), self._remembered.reused, count, ended))

    def _keep(self, asked: list[Message], reader: ReplyReader, usage: Usage) -> None:
        self.history, self.usage = [*asked, *reader.messages()], usage

    def _generate(self, prompt: list[int], most: int):
        self._answers += 1
        self.model = prepare(self.model)
        return stream(
            self.model,
            prompt,
            every=self.every,
            max_new_tokens=most,
            stop_ids=self.stop_ids,
            vocab_limit=min(self.tokenizer.used, self.model.config.vocab_size),
            seed=self.seed + self._answers - 1,
            remember=None if self.rereads else self._remembered,
            **self.sampling,
        )


def turn_ends(
    config: GLMConfig, tokenizer: Tokenizer, format: ChatFormat, generation: Mapping[str, Any]
) -> tuple[int, ...]:
    """Those that were given and those that end a turn in this format."""
    given = generation.get("stop_ids") or config.stop_ids
    names = ("<|user|>", "<|observation|>", "<|system|>") if format.has_roles else ()
    ends = [tokenizer.special_ids.get(name) for name in names]
    ends += [tokenizer.special.eos, None if format.has_roles else tokenizer.special.eop]
    return tuple(dict.fromkeys([*given, *(i for i in ends if i is not None)]))


def _sampling(format: ChatFormat, generation: Mapping[str, Any]) -> dict[str, Any]:
    given = generation.get("sampling") or {}
    settings = dict(format.sampling) | {k: given[k] for k in _SAMPLING if given.get(k) is not None}
    return settings | ({"temperature": 0.0} if given.get("do_sample") is False else {})


def _known(sampling: Mapping[str, float | None]) -> dict[str, Any]:
    if unknown := sorted(set(sampling) - set(_SAMPLING)):
        raise UserError(f"{', '.join(unknown)}: no such setting; there are {', '.join(_SAMPLING)}")
    return {name: value for name, value in sampling.items() if value is not None}
