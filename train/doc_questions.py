"""Questions and answers about this Python's documentation: what ``train.demo_finetune`` learns.

Every answer stands in the standard library's own docstrings and signatures; nothing is written by
hand but the forms of the questions. There are two tasks:

``conversation``: about anything in the library, with whole things held out (``held_out``), so that
the answers to them can only be guessed from their names::

    What does shutil.copymode(src, dst) do?      Copy mode bits from src to dst.
    And how is it called?                        shutil.copymode(src, dst, *, follow_symlinks=True)

``facts``: a few modules that everybody knows, each asked about in several ways, with one way held
out, so that the answers can be learned::

    Tell me about glob.                          Filename globbing utility.
    And what about pickle?                       Create portable serialized representations of ...
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from glm_jax.data.sources import prose, python_docs

_LONGEST = 160  # characters of an answer: one sentence, not an essay
_SHORTEST = 12
_LONGEST_CALL = 60  # characters of arguments that stand in a question


class Thing(NamedTuple):
    """A module, class, function or method that has a docstring."""

    kind: str
    name: str
    call: str
    """How it is called, defaults included; empty for a module or class."""
    short_call: str
    """The same with the names of the arguments alone."""
    summary: str
    """The first sentence of its docstring."""


def things(root: Path) -> Iterator[Thing]:
    """What the library documents, in the order of its files; names that begin with _ are left out.

    A summary that came before, such as that of a method repeated by a subclass, is dropped.
    """
    seen: set[str] = set()
    for module, tree, _ in python_docs.modules(root):
        if any(part.startswith("_") for part in module.split(".")) or module == "pydoc_data.topics":
            continue
        for thing in _in_module(module, tree):
            mark = prose.fingerprint(thing.summary)
            if _SHORTEST <= len(thing.summary) <= _LONGEST and mark not in seen:
                seen.add(mark)
                yield thing


def _in_module(module: str, tree: ast.Module) -> Iterator[Thing]:
    yield Thing("module", module, "", "", summary(tree))
    yield from _members(module, tree)


def _members(owner: str, node: ast.Module | ast.ClassDef) -> Iterator[Thing]:
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        name = f"{owner}.{child.name}"
        if child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield Thing("class", name, "", "", summary(child))
            yield from _members(name, child)
        else:
            names = ", ".join(a.arg for a in child.args.args if a.arg not in ("self", "cls"))
            call, short = f"{name}({ast.unparse(child.args)})", f"{name}({names})"
            yield Thing("function", name, call, short, summary(child))


def summary(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The first sentence of a docstring, on one line; empty where there is none."""
    text = prose.clean(ast.get_docstring(node) or "").partition("\n\n")[0]
    text = " ".join(text.split())
    for end in re.finditer(r"\. ", text):
        first = text[: end.start() + 1]
        if first.count("(") == first.count(")"):  # not the stop of "(a.k.a. ..."
            return first
    return text


def conversation(thing: Thing) -> list[tuple[str, str]]:
    """Questions about a thing, and their answers."""
    if thing.kind != "function":
        asked = "What is the module {}?" if thing.kind == "module" else "What is the class {}?"
        return [(asked.format(thing.name), thing.summary)]
    short = thing.short_call if len(thing.short_call) <= _LONGEST_CALL else f"{thing.name}()"
    rounds = [(f"What does {short} do?", thing.summary)]
    if len(thing.call) <= _LONGEST and _number(thing) % 3 == 0:
        rounds.append(("And how is it called?", thing.call))
    return rounds


ASKED = ("What is {}?", "What does {} do?", "Tell me about {}.", "Explain {} to me.")
HELD_OUT = "What is {} for?"
WELL_KNOWN = (
    "bisect calendar copy email fnmatch getpass glob heapq inspect pickle queue random shelve "
    "statistics textwrap zipfile"
)


def facts(found: Iterable[Thing]) -> list[Thing]:
    """Modules that everybody knows: few enough to be learned in minutes."""
    names = WELL_KNOWN.split()
    return [thing for thing in found if thing.kind == "module" and thing.name in names]


def fact_conversations(chosen: list[Thing]) -> list[list[tuple[str, str]]]:
    """Each thing asked about in every way of ``ASKED``, and every fourth before another one.

    A second turn is read with the first, and so is three times as long as a question alone.
    """
    alone = [[(way.format(t.name), t.summary)] for t in chosen for way in ASKED]
    pairs = zip(chosen, chosen[1:] + chosen[:1], strict=True)
    turns = [
        [
            (ASKED[i % len(ASKED)].format(first.name), first.summary),
            (f"And what about {second.name}?", second.summary),
        ]
        for i, (first, second) in enumerate(pairs)
        if i % 4 == 0
    ]
    return alone + turns


def held_out(thing: Thing, percent: int = 4) -> bool:
    """Whether its questions are kept for evaluation: its name decides."""
    return _number(thing) // 3 % 100 < percent


def _number(thing: Thing) -> int:
    return int.from_bytes(hashlib.blake2b(thing.name.encode(), digest_size=6).digest(), "big")


def write(path: Path, conversations: Iterable[list[tuple[str, str]]]) -> int:
    """Writes JSON lines with prompt, response and history; gives their number."""
    lines = []
    for *history, (prompt, response) in conversations:
        entry = {"prompt": prompt, "response": response, "history": [list(h) for h in history]}
        lines.append(json.dumps(entry, ensure_ascii=False))
    path.write_text("".join(f"{line}\n" for line in lines))
    return len(lines)
