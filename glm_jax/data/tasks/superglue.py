"""SuperGLUE's tasks as blanks to fill: GLM's cloze patterns and verbalizers.

Source: THUDM/GLM tasks/superglue/pvp.py (the wording, and which words stand for a class) and
config_tasks/task_*.sh (which pattern the release used). ``[MASK]`` takes the blank before it with
it, and the words that fill it begin with one: in GLM's vocabularies `` Yes`` is one token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from glm_jax.data.tasks.cloze import (
    BLANK,
    Cloze,
    Entry,
    Task,
    object_of,
    text_of,
    truth_of,
)
from glm_jax.data.tasks.mentions import in_groups, record, sampled, wsc
from glm_jax.errors import UserError


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
    premise, hypothesis = text_of(entry, "premise"), _open(text_of(entry, "hypothesis"))
    return (
        f'"{hypothesis}" ?{BLANK}, "{premise}"',
        f"{hypothesis}?{BLANK}, {premise}",
        f'"{hypothesis}" ?{BLANK}. "{premise}"',
        f"{hypothesis}?{BLANK}. {premise}",
        f"{premise} question: {hypothesis} {asked} answer:{BLANK}",
    )[pattern]


def _boolq(entry: Entry, pattern: int) -> Iterator[Cloze]:
    passage, question = text_of(entry, "passage"), text_of(entry, "question")
    text = (
        f"{passage} Question: {question}? Answer:{BLANK}.",
        f"{passage} Based on the previous passage, {question}?{BLANK}.",
        f"Based on the following passage {question}?{BLANK}. {passage}",
    )[pattern // 2]
    words = (" false", " true") if pattern % 2 else (" No", " Yes")
    yield Cloze(text, words, truth_of(entry))


def _multirc(entry: Entry, pattern: int) -> Iterator[Cloze]:
    passage = object_of(entry, "passage")
    words = (" No", " Yes") if pattern == 0 else (" False", " True")
    text = text_of(passage, "text")
    for number, question in enumerate(passage.get("questions") or ()):
        for answer in question.get("answers") or ():
            asked = f"Question: {text_of(question, 'question')}? Is it {text_of(answer, 'text')}?"
            blank = f"{text}. {asked}{BLANK}."
            yield Cloze(blank, words, truth_of(answer), question=str(number))


def _wic(entry: Entry, pattern: int) -> Iterator[Cloze]:
    first, second, word = (text_of(entry, name) for name in ("sentence1", "sentence2", "word"))
    text = (
        f'"{first}" / "{second}" Similar sense of "{word}"?{BLANK}.',
        f"{first} {second} Does {word} have the same meaning in both sentences?{BLANK}",
    )[pattern]
    yield Cloze(text, (" No", " Yes"), truth_of(entry))


def _copa(entry: Entry, pattern: int) -> Iterator[Cloze]:
    choices = [text_of(entry, name) for name in ("choice1", "choice2")]
    choices = [_open(choice[:1].lower() + choice[1:]) for choice in choices]
    joint = " because" if text_of(entry, "question") == "cause" else ", so"
    quoted = [f'"{choice}"' for choice in choices] if pattern == 0 else choices
    text = f"{quoted[0]} or {quoted[1]}? {_open(text_of(entry, 'premise'))}{joint}{BLANK}."
    yield Cloze(text, tuple(f" {choice}" for choice in choices), _index(entry, 2))


PATTERNS: Mapping[str, Task] = {
    "boolq": Task(_boolq, (0, 1, 2, 3, 4, 5), 2),
    "cb": Task(_cb, (0, 1, 2, 3, 4), 3),
    "copa": Task(_copa, (0, 1)),
    "multirc": Task(_multirc, (0, 3), 2),
    "record": Task(record, (0,), learn=sampled),
    "rte": Task(_rte, (0, 1, 2, 3, 4), 2),
    "wic": Task(_wic, (0, 1), 2),
    "wsc": Task(wsc, (0, 1, 2), learn=in_groups),
}
"""By the names of SuperGLUE's data sets."""


def _open(text: str) -> str:
    """Without the punctuation at its end."""
    return text.rstrip(" .,!?;:")


def _of(classes: Mapping[str, int], entry: Entry) -> int:
    label = entry.get("label")
    if label not in classes:
        raise UserError(f"label {label!r} is none of {', '.join(classes)}")
    return classes[label]


def _index(entry: Entry, count: int) -> int:
    label = entry.get("label")
    if not isinstance(label, int) or not 0 <= label < count:
        raise UserError(f"label {label!r} is no index below {count}")
    return label
