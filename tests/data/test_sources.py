"""Sources: which texts they give, and what they say of bad input."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from glm_jax.data.sources import files, prose, python_docs, readers
from glm_jax.errors import UserError


def texts(path, field="text", on_bad="raise", skipped=None):
    skipped = [] if skipped is None else skipped
    return [t for _, t in files.documents(files.find(str(path)), field, on_bad, skipped)]


def jsonl(*entries) -> bytes:
    return b"".join(json.dumps(e).encode() + b"\n" for e in entries)


def test_the_formats(tmp_path):
    lines = jsonl({"text": "one"}, {"text": " "}, {"text": "zwei ü"})
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    frame = zstandard.ZstdCompressor().compress
    (tmp_path / "c.jsonl.zst").write_bytes(frame(lines) + frame(lines))  # two frames
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbfa text\nof two lines\n")
    pq.write_table(pa.table({"id": [1, 2], "text": ["one", "zwei ü"]}), tmp_path / "e.parquet")
    both = ["one", "zwei ü"]
    assert texts(tmp_path / "*") == [*both, *both, *both, *both, "a text\nof two lines\n", *both]


def test_long_text_files_become_several_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "TXT_DOCUMENT_BYTES", 20)
    (tmp_path / "a.txt").write_text("a line of text\n" * 5)
    assert "".join(texts(tmp_path / "a.txt")) == "a line of text\n" * 5
    assert len(texts(tmp_path / "a.txt")) == 3


BAD = {
    "a.jsonl": (jsonl({"text": "x"}, {"body": "y"}), "line 2: no field 'text'; its fields: body"),
    "b.jsonl": (jsonl({"text": "x"}, {"text": 3}), "line 2: field 'text' is int, not a string"),
    "c.jsonl": (b'{"text": "x"}\n{"text": ', "line 2: not JSON"),
    "d.jsonl": (b'{"text": "x"}\n[1]\n', "line 2: a JSON list, not an object"),
    "e.jsonl": (b'{"text": "x"}\n{"text": "\xff"}\n', "line 2: invalid UTF-8 .byte 0xff"),
    "f.jsonl": (b'{"text": "x"}\n{"text": "\\ud800"}\n', "line 2: field 'text' holds a lone"),
    "g.txt": (b"good\n\xc3(\n", "lines 1 to 2: invalid UTF-8"),
    "h.txt": (b"", "the file is empty"),
    "i.jsonl.gz": (gzip.compress(jsonl({"text": "x"}))[:-9], "truncated or damaged"),
    "j.jsonl.gz": (b"not gzip", "after line 0: the compressed stream is truncated or damaged"),
    "k.jsonl.zst": (zstandard.compress(jsonl({"text": "x"}))[:-4], "truncated or damaged"),
    "l.jsonl.zst": (b"not zstd", "after line 0: the compressed stream is truncated or damaged"),
    "m.parquet": (b"PAR1 not parquet", "not a readable parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_records_are_named_or_counted(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*{message}") as error:
        texts(tmp_path / name)
    assert "\n" not in str(error.value)
    skipped = []
    assert texts(tmp_path / name, on_bad="skip", skipped=skipped) in ([], ["x"])
    assert len(skipped) == 1
    assert name in skipped[0]


def test_bad_parquet(tmp_path):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: no column 'text'; its columns: body"):
        texts(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x", None, "y"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="row 1: field 'text' is NoneType"):
        texts(tmp_path / "b.parquet")
    assert texts(tmp_path / "b.parquet", on_bad="skip") == ["x", "y"]


def test_globs(tmp_path):
    with pytest.raises(UserError, match="no file matches"):
        files.find(str(tmp_path / "*.jsonl"))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(UserError, match=r"a\.csv: unknown format"):
        files.find(str(tmp_path / "*"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("x")
    assert files.find(str(tmp_path / "**" / "*.txt")) == [tmp_path / "sub" / "b.txt"]


def test_the_fingerprint_follows_the_files_and_options(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    marks = {files.fingerprint([path], "text", "raise"), files.fingerprint([path], "text", "skip")}
    path.write_text("three")
    marks.add(files.fingerprint([path], "text", "raise"))
    assert len(marks) == 3


def test_prose_is_unwrapped_and_code_is_kept():
    raw = """Heading of it
    =============

    This is a paragraph whose lines were broken by
    hand at :func:`~os.walk` and ``here``.

    >>> code()
    1

    - an item that goes on for a while, until it is broken
      by the margin
    - another
    """
    assert prose.clean(raw.replace("    ", "")) == (
        "Heading of it\n\n"
        "This is a paragraph whose lines were broken by hand at `os.walk` and `here`.\n\n"
        ">>> code()\n1\n\n"
        "- an item that goes on for a while, until it is broken by the margin\n"
        "- another"
    )


@pytest.fixture
def library(tmp_path):
    """A standard library of one module."""
    sentence = "It says what the thing does, in words that fill more than a line of a page. "
    (tmp_path / "thing.py").write_text(
        f'"""{sentence * 4}"""\n'
        "# A comment of several lines, which is not code but says\n"
        "# why the code below is as it is; nobody would know it\n"
        "# otherwise, and so it was written down.  It goes on for a while, so as to be kept.\n"
        "# And on: short documents are dropped, since they are mostly one formula.\n"
        f'def walk(top, *, deep=True):\n    """Walks through it. {sentence}"""\n'
        f'def again(top):\n    """Walks through it. {sentence}"""\n'
        f'class Thing(Base):\n    """{"Its own text, and enough of it. " * 20}"""\n'
    )
    (tmp_path / "broken.py").write_text("print 'two'")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "t.py").write_text(f'"""{sentence * 9}"""')
    return tmp_path


def test_python_docs(library):
    found = dict(python_docs.documents(library))
    assert set(found) == {"module/thing", "class/thing.Thing", "comments/thing"}
    assert "thing.walk(top, *, deep=True)\nWalks through it." in found["module/thing"]
    assert "again" not in found["module/thing"]  # its text is walk's
    assert found["class/thing.Thing"].startswith("class thing.Thing(Base)\nIts own text")


def test_this_python_has_documentation():
    root = python_docs.stdlib_dir()
    assert python_docs.edition(root) == python_docs.edition(root)
    name, text = next(python_docs.documents(root))
    assert name
    assert len(text) >= 200
