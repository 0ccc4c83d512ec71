"""Every notebook runs from top to bottom, and what is kept of it is what a run gives."""

from __future__ import annotations

import importlib.util
import re

import nbformat
import pytest

from tests.conftest import QUICK, ROOT

_SPEC = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
assert _SPEC and _SPEC.loader
execute = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(execute)

# What a run must have printed, whatever the machine.
SAYS = {
    "01_convert_and_chat": [
        "18 of 18 tensors are the same bits",
        "assistant: The capital of France is Paris.",
    ],
    "02_blank_infilling": ["Paris is the capital of France.", "predicts:"],
    "03_the_family_compared": [],
    "04_serving_from_a_tpu_vm": ["30 the same as alone", "ended with status 0"],
    "05_lora": [
        "In Poland people speak Polish.       In Poland people pay with zloty.",
        "ended with status 0",
    ],
}


def kept(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def test_all_notebooks_are_known():
    assert set(execute.NAMES) == set(SAYS)


@pytest.mark.slow  # a minute or two each
@pytest.mark.parametrize("name", SAYS)
def test_it_runs_and_says_what_it_should(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", QUICK)  # one device, as readers have
    notebook = execute.execute(name, tmp_path)
    before = kept(name)
    assert [c.source for c in notebook.cells] == [c.source for c in before.cells]
    assert len(execute.pictures_of(notebook)) == len(execute.pictures_of(before))
    for text in SAYS[name]:
        assert text in execute.text_of(notebook)


@pytest.mark.parametrize("name", SAYS)
def test_what_is_kept_is_a_run_and_tells_nothing_of_the_machine(name):
    notebook = kept(name)
    source = "\n".join(cell.source for cell in notebook.cells)
    assert re.search(r"# (With a|A) real (checkpoint|one)", source), "the line to change is missing"
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        assert not [o for o in cell.outputs if o.output_type == "error"]
        assert not [o for o in cell.outputs if o.get("name") == "stderr"]
    for text in SAYS[name]:
        assert text in execute.text_of(notebook)
    shown = execute.text_of(notebook)
    assert not re.search(r"(^|[\s'\"])/(home|root|tmp|work|usr)/", shown)
