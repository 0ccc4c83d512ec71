"""SuperGLUE's tasks whose candidates are mentions in their own text: ReCoRD and WSC.

Source: THUDM/GLM tasks/superglue/dataset.py and pvp.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from glm_jax.data.tasks.cloze import BLANK, Cloze, Entry, object_of, plain, text_of, truth_of
from glm_jax.data.tasks.overlap import bare, word_f1
from glm_jax.errors import UserError

MOST = 10  # candidates of a training example, the right one with them


def record(entry: Entry, pattern: int) -> Iterator[Cloze]:
    """A blank for each query, among all entities."""
    del pattern
    passage = object_of(entry, "passage")
    text_of(passage, "text")  # or why it is none
    text = plain(passage["text"])  # with the blanks around it, which the places count
    spans = (text[e["start"] : e["end"] + 1] for e in passage.get("entities") or ())
    names = sorted({name for name in spans if name.strip()})
    body = text.replace("@highlight\n", "- ")
    for query in entry.get("qas") or ():
        asked = text_of(query, "query")
        before, found, behind = asked.partition("@placeholder")
        if not found or not names:
            lacks = "@placeholder" if not found else "entity to fill it"
            raise UserError(f"query {asked!r} has no {lacks}")
        right = {plain(answer["text"]) for answer in query.get("answers") or ()}
        truths = {bare(name) for name in right}
        credit = tuple(float(bare(name) in truths) for name in names)
        overlap = tuple(max((word_f1(name, x) for x in right), default=0.0) for name in names)
        label = credit.index(1) if 1 in credit else -1
        yield Cloze(f"{body} {before.rstrip()}{BLANK}{behind}", _led(names), label, credit, overlap)


def sampled(cloze: Cloze) -> Iterator[Cloze]:
    """One for each right candidate, among at most nine that are wrong, always the same ones."""
    pairs = list(zip(cloze.answers, cloze.credit, strict=True))
    wrong = [name for name, credit in pairs if not credit]
    order = np.random.default_rng(zlib.crc32(cloze.text.encode())).permutation(len(wrong))
    few = [wrong[i] for i in sorted(order[: MOST - 1])]
    for name, credit in pairs:
        if credit:
            yield Cloze(cloze.text, (name, *few), 0)


def wsc(entry: Entry, pattern: int) -> Iterator[Cloze]:
    """What the pronoun stands for, the span or one of the line's ``candidates`` (as in GLM's
    "WSC-negative" data). Where it is not the span, choosing any other is right.
    """
    target = object_of(entry, "target")
    span, pronoun = text_of(target, "span1_text"), text_of(target, "span2_text")
    words = _marked(text_of(entry, "text").split(), target.get("span2_index"), pronoun)
    asked = (
        f" The pronoun '*{pronoun}*' refers to",
        f" In the previous sentence, the pronoun '*{pronoun}*' refers to",
        f" Question: In the passage above, what does the pronoun '*{pronoun}*' refer to? Answer:",
    )[pattern]
    others = [text_of(candidate, "text") for candidate in entry.get("candidates") or ()]
    if not others:
        raise UserError(
            "field 'candidates' is no list of what else could be meant: {\"text\": ...}"
        )
    names = (span, *dict.fromkeys(others))
    true = truth_of(entry)
    credit = (float(true), *[float(not true)] * (len(names) - 1))
    blank = f"{' '.join(words)}{asked}{BLANK}."
    yield Cloze(blank, _led(names), 0 if true else -1, credit)


def in_groups(cloze: Cloze) -> Iterator[Cloze]:
    """The first candidate, if it is right, among nine of the others at a time."""
    if cloze.label == 0:
        right, *others = cloze.answers
        for start in range(0, len(others), MOST - 1):
            yield Cloze(cloze.text, (right, *others[start : start + MOST - 1]), 0)


def _led(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f" {name}" for name in names)


def _marked(words: list[str], at: object, pronoun: str) -> list[str]:
    """The words with ``*`` around the pronoun, which may stand one beside where the data says, or
    have punctuation behind it."""
    if isinstance(at, int):
        for i in (at, at - 1, at + 1):
            if 0 <= i < len(words) and words[i] == pronoun:
                return [*words[:i], f"*{pronoun}*", *words[i + 1 :]]
        if 0 <= at < len(words) and words[at].startswith(pronoun):
            rest = words[at][len(pronoun) :]
            return [*words[:at], f"*{pronoun}*", rest, *words[at + 1 :]]
    raise UserError(f"span2_index {at!r} is not where {pronoun!r} stands in the text")
