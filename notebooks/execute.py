"""Runs the notebooks and keeps their outputs: ``python notebooks/execute.py [NOTEBOOK ...]``.

Outputs are kept without what differs from run to run: times, warnings, execution metadata.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
NAMES = tuple(path.stem for path in sorted(HERE.glob("[0-9]*.ipynb")))


def execute(name: str, folder: Path, timeout: int = 300) -> nbformat.NotebookNode:
    """A notebook run from top to bottom with ``folder`` as its working directory.

    Raises:
      CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3",
                            resources={"metadata": {"path": str(folder)}})  # fmt: skip
    with _found():
        client.execute()
    return tidy(notebook)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without warnings and without traces of the run."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for data in (o.data for o in cell.outputs if "image/png" in o.get("data", {})):
                data["image/png"] = _small(data["image/png"])
    return notebook


def _small(png: str) -> str:
    """The same picture with 256 colours: a third of the bytes."""
    picture, out = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def text_of(notebook: nbformat.NotebookNode) -> str:
    """All that the notebook printed."""
    outputs = (o for cell in notebook.cells for o in cell.get("outputs", ()))
    return "".join(o.text for o in outputs if o.output_type == "stream")


def pictures_of(notebook: nbformat.NotebookNode) -> list[str]:
    """All PNG pictures in it, base64."""
    outputs = (o for cell in notebook.cells for o in cell.get("outputs", ()))
    return [o.data["image/png"] for o in outputs if "image/png" in o.get("data", ())]


@contextlib.contextmanager
def _found() -> Iterator[None]:
    """The kernel finds the library and tiny.py, and runs on the CPU."""
    before = dict(os.environ)
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in names or NAMES:
            stem = Path(name).stem
            nbformat.write(execute(stem, Path(folder)), HERE / f"{stem}.ipynb")
            print(f"{stem}: done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
