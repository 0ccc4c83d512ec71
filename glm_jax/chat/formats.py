"""The chat formats by name: conversation to prompt, reply to messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from glm_jax.chat import replies, roles, rounds
from glm_jax.chat.all_tools import RELEASED, AllTools
from glm_jax.chat.message import Message, check_tools, conversation
from glm_jax.errors import UserError
from glm_jax.text.tokenizer import Tokenizer

Messages = Iterable[Message | Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """How one release writes a conversation, and samples by default.

    Attributes:
      post: what is done with the text of a reply; unused in formats with role tokens.
      turn: one turn of a reply, in formats with role tokens.
      sampling: settings of the released chat function.
    """

    name: str
    post: Callable[[str], str] = replies.plain
    turn: Callable[[str, replies.Tools | None], Message] | None = None
    sampling: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"temperature": 0.8, "top_p": 0.8}
    )

    @property
    def full_width(self) -> bool:
        """Whether punctuation beside Chinese characters becomes full-width."""
        return self.post is replies.tidy

    @property
    def has_roles(self) -> bool:
        """Whether turns begin with role tokens, and there can be metadata, tools, observations."""
        return self.turn is not None


_SAMPLING_6B = {"temperature": 0.95, "top_p": 0.7}
FORMATS = {
    f.name: f
    for f in (
        ChatFormat("chatglm-6b", replies.tidy, sampling=_SAMPLING_6B),
        ChatFormat("chatglm-6b-v1.0", sampling=_SAMPLING_6B),
        ChatFormat("chatglm2-6b"),
        ChatFormat("chatglm3-6b", turn=replies.chatglm3_turn),
        ChatFormat("glm-4-9b", turn=replies.glm4_turn),
    )
}


def chat_format(name: str) -> ChatFormat:
    """The format of a family: ``prompt_format`` of ``generation.json``, or a tokenizer's family.

    Raises:
      UserError: the family has none; GLM's base models fill blanks.
    """
    # Variants such as chatglm3-6b-32k and glm-4-9b-chat share the format of their family.
    for known in sorted(FORMATS, key=len, reverse=True):
        if name == known or name.startswith(f"{known}-"):
            return FORMATS[known]
    raise UserError(
        f"{name or 'a tokenizer of no family'} has no chat format; there are {', '.join(FORMATS)}. "
        "Other models continue texts and fill blanks: glm_jax.generate, glm_jax.fill"
    )


def render(
    messages: Messages,
    tokenizer: Tokenizer,
    *,
    format: str | None = None,
    tools: Tools = None,
    add_generation_prompt: bool = True,
    call: str | None = None,
    all_tools: AllTools = RELEASED,
) -> list[int]:
    """The ids that the released chat functions give the model for a conversation.

    >>> render([Message("user", "你好")], tok)                 # chatglm3-6b
    [64790, 64792, 64795, 30910, 13, 36474, 54591, 64796]

    No text in a message gives the id of a role or of another special token.

    Args:
      messages: ``Message`` or dicts (``Message.of``).
      format: a name of ``FORMATS`` or a variant of one; the tokenizer's family by default.
      tools: what the model may call; put into the system turn.
      add_generation_prompt: end where the model's answer begins. Without it the formats with role
        tokens give just the messages, those with rounds a whole training text, ending with the
        last answer and its end token.
      call: the tool that the answer must call: its line is already written.
      all_tools: the variant of GLM-4's text about its tools.

    Raises:
      UserError: the format is unknown, is not for this tokenizer, or cannot hold these messages.
    """
    turns, chosen = conversation(messages), chat_format(format or tokenizer.family)
    if not turns:
        raise UserError("the conversation is empty; there is nothing to answer")
    if not chosen.has_roles:
        if call is not None:
            raise UserError(f"the prompts of {chosen.name} have no tools")
        return exchange(turns, tokenizer, chosen, tools, add_generation_prompt).ids(
            add_generation_prompt
        )
    if call is not None and not add_generation_prompt:
        raise UserError(f"a call of {call} needs the generation prompt that it continues")
    ids = roles.start(tokenizer)
    for _, turn in written_turns(turns, tokenizer, chosen, tools, all_tools):
        ids += turn
    return ids + roles.opening(tokenizer, call) if add_generation_prompt else ids


def exchange(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    chosen: ChatFormat,
    tools: Tools,
    generate: bool,
) -> rounds.Exchange:
    """A conversation in a format with rounds, its last answer apart; with ``generate`` without one.

    Raises:
      UserError: the format cannot hold these messages, or tools.
    """
    if tools:
        raise UserError(f"the prompts of {chosen.name} have no tools")
    write = rounds.chatglm2 if chosen.name == "chatglm2-6b" else rounds.chatglm
    return write(messages, tokenizer, generate)


def written_turns(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    chosen: ChatFormat,
    tools: Tools,
    all_tools: AllTools = RELEASED,
) -> roles.Turns:
    """A conversation in a format with role tokens, turn by turn, behind ``roles.start``.

    Raises:
      UserError: the tokenizer lacks the format's tokens, or tools are given twice.
    """
    if chosen.name == "chatglm3-6b":
        turns = roles.chatglm3_tools(messages, check_tools(tools)) if tools else messages
        return roles.chatglm3(turns, tokenizer)
    turns = roles.glm4_tools(messages, check_tools(tools)) if tools else messages
    return roles.glm4(turns, tokenizer, all_tools)


def parse_replies(text: str, format: str, tools: Tools = None) -> list[Message]:
    """The messages of a reply: in formats with role tokens one per ``<|assistant|>`` in it.

    Never fails: a call that cannot be read gives a message whose ``error`` says why.

    Args:
      text: the decoded reply, without the prompt's ``<|assistant|>`` and without a stop token.
      format: as for ``render``.
      tools: what the model may call. None: unknown; a call that cannot be read is then a text.

    Raises:
      UserError: the format is unknown.
    """
    chosen = chat_format(format)
    if chosen.turn is None:
        return [Message("assistant", chosen.post(text))]
    return [chosen.turn(part, tools) for part in text.split(replies.TURN)]


def parse_reply(text: str, format: str, tools: Tools = None) -> Message:
    """The last message of a reply, as the released ``process_response`` gives it back.

    >>> parse_reply("track\\n```python\\ntool_call(symbol='10111')\\n```", "chatglm3-6b").tool_calls
    (ToolCall(name='track', arguments={'symbol': '10111'}, ...),)

    Arguments and errors are those of ``parse_replies``.
    """
    return parse_replies(text, format, tools)[-1]
