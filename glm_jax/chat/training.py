"""Conversations to learn from: the ids that ``render`` gives, and which of them the model writes.

For the question 你好 and the answer 你好, learned ids in brackets::

    chatglm-6b   5 74874 [gMASK] [<sop> 5 74874 <eop>]
    chatglm2-6b  [gMASK] sop 790 .. 31211 [36474 54591 </s>]
    chatglm3-6b  [gMASK] sop <|user|> 30910 13 36474 54591 <|assistant|> [30910 13 36474 54591 </s>]
    glm-4-9b     [gMASK] <sop> <|user|> 198 109377 <|assistant|> [198 109377 <|user|>]

Sources: preprocess_function_train of ptuning/main.py (ChatGLM-6B, ChatGLM2-6B); process_batch of
finetune_demo (ChatGLM3) and of finetune (GLM-4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from glm_jax.chat import roles
from glm_jax.chat.all_tools import RELEASED, AllTools
from glm_jax.chat.formats import (
    ChatFormat,
    Messages,
    Tools,
    chat_format,
    exchange,
    written_turns,
)
from glm_jax.chat.message import Message, conversation
from glm_jax.errors import UserError
from glm_jax.text.tokenizer import Tokenizer

WhichTurns = Literal["all", "last"]


class TrainingText(NamedTuple):
    """A text of n ids; ``learned[i]`` says whether the model learns to write id i."""

    ids: list[int]
    learned: list[bool]
    prompt: int
    """Ids of the text that stand before an answer; 0 where answers stand among the rest."""


def render_training(
    messages: Messages,
    tokenizer: Tokenizer,
    *,
    format: str | None = None,
    tools: Tools = None,
    turns: WhichTurns = "all",
    all_tools: AllTools = RELEASED,
) -> list[TrainingText]:
    """The texts that a model learns a conversation from.

    Every learned id is one that the model itself writes at inference: the answer, the line of
    metadata before it, and the token that ends it. Formats with role tokens give one text. Those
    with rounds give one for each answer: ``render`` of what stands before it, the answer and its
    end, since a prompt of theirs is read as a whole (ChatGLM-6B) and has no end tokens inside.

    Args:
      messages, format, tools, all_tools: as for ``render``. A message whose ``loss`` is set is
        learned, or not, whatever its role.
      turns: "all" answers, or the "last" (with the calls that belong to it). In GLM-4's format
        "last" leaves out the line break after the role token, as the release's
        ``combine: True`` does.

    Raises:
      UserError: as for ``render``; or nothing is left to learn.
    """
    said, chosen = conversation(messages), chat_format(format or tokenizer.family)
    if chosen.has_roles:
        texts = [_one_text(said, tokenizer, chosen, tools, turns, all_tools)]
    else:
        texts = _rounds(said, tokenizer, chosen, tools, turns)
    if not any(any(text.learned) for text in texts):
        raise UserError("there is no answer of the assistant's to learn")
    return texts


def _rounds(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    chosen: ChatFormat,
    tools: Tools,
    turns: WhichTurns,
) -> list[TrainingText]:
    ends = [i for i, message in enumerate(messages, 1) if message.role == "assistant"]
    texts = []
    for end in ends[-1:] if turns == "last" else ends:
        if messages[end - 1].loss is not False:
            part = exchange(messages[:end], tokenizer, chosen, tools, False)
            ids = part.ids(generate=False)
            # [gMASK] is given; that <sop> follows it is learned, as in the release.
            given = len(part.prompt) + len(part.opening[:1])
            learned = [i >= given for i in range(len(ids))]
            texts.append(TrainingText(ids, learned, len(part.prompt) + len(part.opening)))
    return texts


def _one_text(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    chosen: ChatFormat,
    tools: Tools,
    turns: WhichTurns,
    all_tools: AllTools,
) -> TrainingText:
    written = written_turns(messages, tokenizer, chosen, tools, all_tools)
    first = _last_reply(written) if turns == "last" else 0
    ids = roles.start(tokenizer)
    inside = [False] * len(ids)
    for i, (message, turn) in enumerate(written):
        learn = message.loss if message.loss is not None else message.role == "assistant"
        ids += turn
        inside += [learn and i >= first] * len(turn)
    # What stands inside a learned turn is followed by what is learned: not the role token, but the
    # token behind the turn, by which the model ends it.
    learned = [False, *inside]
    ids.append(_end(tokenizer, chosen))
    if turns == "last" and chosen.name == "glm-4-9b" and True in learned:
        _as_combined(written[first][0], learned)
    return TrainingText(ids, learned, 0)


def _as_combined(message: Message, learned: list[bool]) -> None:
    """GLM-4's ``combine: True`` does not learn the id after the role token; a tool's name is."""
    if not message.metadata:
        learned[learned.index(True)] = False


def _last_reply(written: roles.Turns) -> int:
    """Where the last run of the assistant's turns begins."""
    spoken = [i for i, (message, _) in enumerate(written) if message.role == "assistant"]
    if not spoken:
        return len(written)
    first = spoken[-1]
    while first - 1 in spoken:
        first -= 1
    return first


def _end(tokenizer: Tokenizer, chosen: ChatFormat) -> int:
    if chosen.name == "chatglm3-6b":
        return tokenizer.special.require("eos")[0]
    return roles.role_id(tokenizer, "user")
