"""Conversations: messages, the prompts of every chat model, replies read back, and ``Chat``.

>>> chat = glm_jax.Chat(model, tok)
>>> chat.send("你好").text
"""

from glm_jax.chat.all_tools import AllTools
from glm_jax.chat.formats import (
    FORMATS,
    ChatFormat,
    chat_format,
    parse_replies,
    parse_reply,
    render,
)
from glm_jax.chat.message import Message, ToolCall
from glm_jax.chat.session import Chat, Usage, turn_ends
from glm_jax.chat.streaming import ReplyReader
from glm_jax.chat.training import TrainingText, render_training

__all__ = [
    "FORMATS",
    "AllTools",
    "Chat",
    "ChatFormat",
    "Message",
    "ReplyReader",
    "ToolCall",
    "TrainingText",
    "Usage",
    "chat_format",
    "parse_replies",
    "parse_reply",
    "render",
    "render_training",
    "turn_ends",
]
