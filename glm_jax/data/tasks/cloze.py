"""A blank to fill, and what stands in a line of a task's JSONL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from glm_jax.data.finetune.forms import Entry
from glm_jax.errors import UserError

BLANK = "[MASK]"
# As THUDM/GLM data_utils/corpora.py: what the vocabulary has in plainer form.
_PLAIN = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2013": "-"})


class Cloze(NamedTuple):
    """A text with a blank, what may fill it, and which of that is right."""

    text: str
    answers: tuple[str, ...]
    label: int
    """Of the right one; -1 where none is, from which nothing is learned."""
    credit: tuple[float, ...] = ()
    """What choosing each counts as, 1 for right; empty: 1 for the label's alone."""
    overlap: tuple[float, ...] = ()
    """How much each has in common with a right one (``overlap.py``); empty: as ``credit``."""
    question: str = ""
    """Of the line's questions, where each has several blanks and only all of them are an answer."""


def as_it_is(cloze: Cloze) -> Iterator[Cloze]:
    if cloze.label >= 0:
        yield cloze


class Task(NamedTuple):
    """How to read a line of a task's JSONL."""

    read: Callable[[Entry, int], Iterator[Cloze]]
    """The blanks of a line, in a pattern's words."""
    patterns: tuple[int, ...]
    """Those that there are."""
    classes: int = 0
    """Of a task whose answers are the same words in every example."""
    learn: Callable[[Cloze], Iterator[Cloze]] = as_it_is
    """What is trained in a blank's place."""


def text_of(entry: Entry, name: str) -> str:
    """A field, its quotes and dashes as the vocabulary has them."""
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"field {name!r} is {value!r}, not a text")
    return plain(value.strip())


def plain(text: str) -> str:
    """With straight quotes and hyphens."""
    return text.translate(_PLAIN)


def object_of(entry: Entry, name: str) -> Entry:
    value = entry.get(name)
    if not isinstance(value, Mapping):
        raise UserError(f"field {name!r} is no object")
    return value


def truth_of(entry: Entry) -> int:
    """A label that says yes or no."""
    label = entry.get("label")
    if isinstance(label, bool) or label in (0, 1):
        return int(label)
    raise UserError(f"label {label!r} is none of true, false, 1, 0")
