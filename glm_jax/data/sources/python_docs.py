"""The documentation that every Python carries: reference topics, docstrings and comments.

The standard library's source files are parsed, never imported, so reading them has no side
effects and gives the same documents wherever the same Python is installed.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from glm_jax.data.sources import prose

# Not documentation: test suites, installed packages, generated tables.
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_MIN_CLASS_CHARS = 400  # a class that says less than this is told in its module's document
_MIN_CHARS = 200  # shorter documents are mostly one formula, such as those of 80 generated codecs
_Def = ast.FunctionDef | ast.AsyncFunctionDef


def stdlib_dir() -> Path:
    """Where the standard library of the running Python lies."""
    return Path(sysconfig.get_paths()["stdlib"])


def source_files(root: Path) -> list[Path]:
    """The library's Python files, in an order that does not depend on the file system."""
    files = (p for p in root.rglob("*.py") if not _SKIPPED & set(p.relative_to(root).parts))
    return sorted(files, key=lambda p: p.relative_to(root).as_posix())


def edition(root: Path) -> str:
    """A short name of this library's text: the Python version and a hash of names and sizes."""
    digest = hashlib.sha256()
    for path in source_files(root):
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
    return f"py{sys.version_info.major}.{sys.version_info.minor}-{digest.hexdigest()[:12]}"


def modules(root: Path) -> Iterator[tuple[str, ast.Module, str]]:
    """(dotted name, syntax tree, source) of every file that is Python in UTF-8."""
    for path in source_files(root):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        try:
            source = path.read_text("utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old modules
                yield name, ast.parse(source), source
        except (SyntaxError, ValueError):  # templates that are not Python, other encodings
            continue


def documents(root: Path) -> Iterator[tuple[str, str]]:
    """Pairs (key, text): reference topics, modules, classes and source comments.

    Each docstring appears once in the whole corpus: a later copy (``ntpath`` of ``posixpath``,
    a method repeated by its subclasses) is dropped, so that held-out text is not training text.
    """
    seen: set[str] = set()
    for name, tree, source in modules(root):
        if name == "pydoc_data.topics":
            parts = _topics(tree)
        else:
            parts = _module_documents(name, tree, source)
        for key, paragraphs in parts:
            text = _assemble(paragraphs, seen)
            if len(text) >= _MIN_CHARS:
                yield key, text


def _assemble(paragraphs: list[tuple[str, str]], seen: set[str]) -> str:
    """The (heading, text) pairs that are new and worth reading, as one text."""
    kept = []
    for heading, raw in paragraphs:
        text = prose.clean(raw)
        mark = prose.fingerprint(text)
        if prose.is_prose(text) and mark not in seen:
            seen.add(mark)
            kept.append(f"{heading}\n{text}" if heading else text)
    return "\n\n".join(kept)


def _topics(tree: ast.Module) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The language reference behind ``help("assert")``: one dict literal of texts."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                yield f"topic/{name}", [("", text)]


def _module_documents(name: str, tree: ast.Module, source: str):
    overview = [(f"Module {name}", ast.get_docstring(tree) or "")]
    for node in tree.body:
        if isinstance(node, _Def):
            overview.append(_described(name, node))
        elif isinstance(node, ast.ClassDef):
            members = list(_class_parts(name, node))
            if sum(len(text) for _, text in members) < _MIN_CLASS_CHARS:
                overview += members
            else:
                yield f"class/{name}.{node.name}", members
    yield f"module/{name}", overview
    yield f"comments/{name}", [("", block) for block in _comment_blocks(source)]


def _class_parts(module: str, node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    yield _described(module, node)
    for child in node.body:
        if isinstance(child, _Def):
            yield _described(node.name, child)
        elif isinstance(child, ast.ClassDef):
            yield from _class_parts(f"{module}.{node.name}", child)


def _described(owner: str, node: _Def | ast.ClassDef) -> tuple[str, str]:
    """What ``help`` would put above a docstring, and the docstring ("" where there is none)."""
    text = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {owner}.{node.name}" + (f"({bases})" if bases else ""), text
    arguments = ast.unparse(node.args)
    return f"{owner}.{node.name}({arguments})", text


def _comment_blocks(source: str, min_lines: int = 3) -> Iterator[str]:
    """Runs of comment lines that are sentences, not commented-out code."""
    block: list[str] = []
    for line in [*source.split("\n"), ""]:
        match = re.match(r"\s*#+( ?)(.*)$", line)
        if match and not line.startswith("#!"):
            block.append(match[2])
            continue
        if len(block) >= min_lines and not _is_code("\n".join(block)):
            yield "\n".join(block)
        block = []


def _is_code(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True
