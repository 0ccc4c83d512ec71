"""From hard-wrapped plain text (docstrings, comments, reST) to clean paragraphs."""

from __future__ import annotations

import itertools
import re
import textwrap

_RULE = re.compile(r"^\W{3,}$")  # the underline of a heading, a box, a separator
_ROLE = re.compile(r":[a-z][a-z:]*:`~?([^`]*)`")  # :func:`~os.walk` -> `os.walk`
_VERBATIM = re.compile(r"^\s*(>>>|\.\.\.|[-*+|#]\s|\(?\w{1,2}[.)]\s)")
_BULLET = re.compile(r"^\s*([-*+]|\(?\w{1,2}[.)])\s+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_WRAPPED = 40  # a line shorter than this was probably not wrapped by hand, so it stays a line


def clean(text: str) -> str:
    """Text as paragraphs: unwrapped, without markup that carries no meaning.

    A newline counts as the end of a sentence in GLM's sentence objective, and a hard-wrapped
    paragraph has one in the middle of most of its sentences: so lines are joined wherever they
    are prose, and kept where they are code, lists of names or tables.
    """
    text = _CONTROL.sub("", text.expandtabs().replace("\r\n", "\n"))
    text = _ROLE.sub(r"`\1`", text).replace("``", "`")
    lines = [line.rstrip() for line in textwrap.dedent(text).strip("\n").split("\n")]
    lines = ["" if _RULE.match(line) else line for line in lines]
    paragraphs = ["\n".join(_unwrap(item) for item in _items(p)) for p in _paragraphs(lines)]
    return "\n\n".join(paragraphs).strip()


def is_prose(text: str, min_chars: int = 40) -> bool:
    """Whether text is long enough and made of words enough to be worth learning from."""
    letters = sum(c.isalpha() or c == " " for c in text)
    return len(text) >= min_chars and letters >= 0.7 * len(text) and text.count(" ") >= 5


def fingerprint(text: str) -> str:
    """What two texts share when they differ only in case, blanks and punctuation."""
    return re.sub(r"\W+", "", text).lower()


def _paragraphs(lines: list[str]) -> list[list[str]]:
    return [list(group) for filled, group in itertools.groupby(lines, bool) if filled]


def _items(paragraph: list[str]) -> list[list[str]]:
    """A paragraph cut before each bullet or number of a list."""
    items: list[list[str]] = [[]]
    for line in paragraph:
        if _BULLET.match(line) and items[-1]:
            items.append([])
        items[-1].append(line)
    return items


def _unwrap(lines: list[str]) -> str:
    """One paragraph on one line if its lines were broken by a margin, else as it stands."""
    head, tail = lines[0], lines[1:]
    indents = {len(line) - len(line.lstrip()) for line in tail}
    wrapped = all(len(line) >= _WRAPPED for line in lines[:-1])
    plain = not any(_VERBATIM.match(line) for line in tail) and ">>>" not in head
    if tail and wrapped and plain and len(indents) == 1:
        body = " ".join(line.strip() for line in lines)
        return head[: len(head) - len(head.lstrip())] + body
    return "\n".join(lines)
