"""SuperGLUE's tasks as blanks to fill: GLM's cloze patterns and verbalizers.

Source: THUDM/GLM tasks/superglue/pvp.py (the wording, and which words stand for a class) and
config_tasks/task_*.sh (which pattern the release used). ``[MASK]`` takes the blank before it with
it, and the words that fill it begin with one: in GLM's vocabularies `` Yes`` is one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from glm_jax.errors import UserError

Entry = Mapping[str, Any]
BLANK = "[MASK]"


class Cloze(NamedTuple):
    """A text with a blank, what may fill it, and which of that is right."""

    text: str
    answers: tuple[str, ...]
    label: int


class Task(NamedTuple):
    """How to read a line of a task's JSONL; ``patterns`` are those that there are."""

    read: Callable[[Entry, int], Iterator[Cloze]]
    patterns: tuple[int, ...]
    classes: int = 0
    """Of a task whose answers are the same words in every example."""


def _rte(entry: Entry, pattern: int) -> Iterator[Cloze]:
    classes = {"entailment": 0, "not_entailment": 1}
    words = (" true", " false") if pattern == 4 else (" Yes", " No")
    yield Cloze(_entailment(entry, pattern, "True or False?"), words, _of(classes, entry))


def _cb(entry: Entry, pattern: int) -> Iterator[Cloze]:
    classes = {"entailment": 0, "contradiction": 1, "neutral": 2}
    words = (" true", " false", " neither") if pattern == 4 else (" Yes", " No", " Maybe")
    asked = "true, false or neither?"
    yield Cloze(_entailment(entry, pattern, asked), words, _of(classes, entry))


def _entailment(entry: Entry, pattern: int, asked: str) -> str:
    premise, hypothesis = _text(entry, "premise"), _open(_text(entry, "hypothesis"))
    return (
        f'"{hypothesis}" ?{BLANK}, "{premise}"',
        f"{hypothesis}?{BLANK}, {premise}",
        f'"{hypothesis}" ?{BLANK}. "{premise}"',
        f"{hypothesis}?{BLANK}. {premise}",
        f"{premise} question: {hypothesis} {asked} answer:{BLANK}",
    )[pattern]


def _boolq(entry: Entry, pattern: int) -> Iterator[Cloze]:
    passage, question = _text(entry, "passage"), _text(entry, "question")
    text = (
        f"{passage} Question: {question}? Answer:{BLANK}.",
        f"{passage} Based on the previous passage, {question}?{BLANK}.",
        f"Based on the following passage {question}?{BLANK}. {passage}",
    )[pattern // 2]
    words = (" false", " true") if pattern % 2 else (" No", " Yes")
    yield Cloze(text, words, _bool(entry))


def _multirc(entry: Entry, pattern: int) -> Iterator[Cloze]:
    passage = entry.get("passage")
    if not isinstance(passage, Mapping):
        raise UserError("field 'passage' is no object")
    words = (" No", " Yes") if pattern == 0 else (" False", " True")
    text = _text(passage, "text")
    for question in passage.get("questions") or ():
        for answer in question.get("answers") or ():
            asked = f"Question: {_text(question, 'question')}? Is it {_text(answer, 'text')}?"
            yield Cloze(f"{text}. {asked}{BLANK}.", words, _bool(answer))


def _wic(entry: Entry, pattern: int) -> Iterator[Cloze]:
    first, second, word = (_text(entry, name) for name in ("sentence1", "sentence2", "word"))
    text = (
        f'"{first}" / "{second}" Similar sense of "{word}"?{BLANK}.',
        f"{first} {second} Does {word} have the same meaning in both sentences?{BLANK}",
    )[pattern]
    yield Cloze(text, (" No", " Yes"), _bool(entry))


def _copa(entry: Entry, pattern: int) -> Iterator[Cloze]:
    choices = [_text(entry, name) for name in ("choice1", "choice2")]
    choices = [_open(choice[:1].lower() + choice[1:]) for choice in choices]
    joint = " because" if _text(entry, "question") == "cause" else ", so"
    quoted = [f'"{choice}"' for choice in choices] if pattern == 0 else choices
    text = f"{quoted[0]} or {quoted[1]}? {_open(_text(entry, 'premise'))}{joint}{BLANK}."
    yield Cloze(text, tuple(f" {choice}" for choice in choices), _index(entry, 2))


def _record(entry: Entry, pattern: int) -> Iterator[Cloze]:
    """A blank for each query; where several mentions are right, the first one."""
    del pattern
    passage = entry.get("passage")
    if not isinstance(passage, Mapping):
        raise UserError("field 'passage' is no object")
    text = _text(passage, "text")
    spans = [text[e["start"] : e["end"] + 1] for e in passage.get("entities") or ()]
    names = list(dict.fromkeys(name.strip() for name in spans))
    for query in entry.get("qas") or ():
        right = [answer["text"].strip() for answer in query.get("answers") or ()]
        known = [names.index(name) for name in right if name in names]
        if known:
            asked = _text(query, "query").replace("@placeholder", BLANK)
            asked = asked.replace(f" {BLANK}", BLANK)
            body = text.replace("@highlight\n", "- ")
            yield Cloze(f"{body}\n{asked}", tuple(f" {name}" for name in names), known[0])


PATTERNS: Mapping[str, Task] = {
    "boolq": Task(_boolq, (0, 1, 2, 3, 4, 5), 2),
    "cb": Task(_cb, (0, 1, 2, 3, 4), 3),
    "copa": Task(_copa, (0, 1)),
    "multirc": Task(_multirc, (0, 3), 2),
    "record": Task(_record, (0,)),
    "rte": Task(_rte, (0, 1, 2, 3, 4), 2),
    "wic": Task(_wic, (0, 1), 2),
}
"""By the names of SuperGLUE's data sets."""


def _text(entry: Entry, name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"field {name!r} is {value!r}, not a text")
    return value.strip()


def _open(text: str) -> str:
    """Without the punctuation at its end."""
    return text.rstrip(" .,!?;:")


def _of(classes: Mapping[str, int], entry: Entry) -> int:
    label = entry.get("label")
    if label not in classes:
        raise UserError(f"label {label!r} is none of {', '.join(classes)}")
    return classes[label]


def _bool(entry: Entry) -> int:
    label = entry.get("label")
    if isinstance(label, bool) or label in (0, 1):
        return int(label)
    raise UserError(f"label {label!r} is none of true, false, 1, 0")


def _index(entry: Entry, count: int) -> int:
    label = entry.get("label")
    if not isinstance(label, int) or not 0 <= label < count:
        raise UserError(f"label {label!r} is no index below {count}")
    return label
