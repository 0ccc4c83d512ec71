"""The tables of docs/tpu.md and docs/finetuning.md: rows that the compiler's answers make."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from train.planning import cache
from train.planning.estimate import memory_floor
from train.planning.grids import FINETUNING, INFERENCE, TRAINING
from train.planning.result import Result
from train.planning.tables import GIB, duration, markdown, verdict, weights

DOCS = cache.ROOT / "docs"

Answer = Callable[[str], Result | None]
"""From a command's options to its result; None where there is none."""


def rewrite(answer: Answer, docs: Path = DOCS) -> None:
    """Asks every command of the grids and puts the tables between their marks in tpu.md and
    finetuning.md; what has no answer has no row."""
    asked = lambda grid: [(o, found) for o in grid if (found := answer(o)) is not None]
    tuned = [(o, release, answer(o)) for o, release in FINETUNING]
    # What compiles in seconds comes first.
    _put(docs / "finetuning.md", "memory", _finetuning(tuned))
    _put(docs / "tpu.md", "inference", _inference(asked(INFERENCE)))
    _put(docs / "tpu.md", "training", _training(asked(TRAINING)))
    versions = ", ".join(f"{name} {cache.version(name)}" for name in ("jax", "libtpu"))
    for name in ("finetuning.md", "tpu.md"):
        _put(docs / name, "versions", f"Compiled with {versions}.\n")


def _put(document: Path, name: str, inside: str) -> None:
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    marks = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
    text = document.read_text()
    if not marks.search(text):
        raise ValueError(f"{document} has no marks for {name!r}: {begin.strip()} ... {end}")
    document.write_text(marks.sub(lambda found: f"{found[1]}\n{inside}\n{found[2]}", text))


Asked = Sequence[tuple[str, Result]]
_HEADER = ("model", "slice", "tokens a row", "rows", "memory, GiB", "compute", "kernels, loops",
           "links")  # fmt: skip


def _training(asked: Asked) -> str:
    rows = [
        (*_start(result), *_times(result), _step(result), _utilisation(result), _command(options))
        for options, result in asked
    ]
    return markdown((*_HEADER, "step at least", "utilisation at most", "options"), rows)


def _inference(asked: Asked) -> str:
    rows = [
        (
            result.question.task,
            *_start(result),
            *_times(result),
            _step(result),
            duration(memory_floor(result.question, result.found)),
            _command(options),
        )
        for options, result in asked
    ]
    return markdown(("task", *_HEADER, "step at least", "memory read once", "options"), rows)


def _finetuning(asked: Sequence[tuple[str, str, Result | None]]) -> str:
    rows = [
        (
            result.question.model,
            result.question.method,
            "" if result.question.method == "full" else weights(result.question.quant),
            f"{result.question.rows} x {result.question.length}",
            release,
            f"{(result.peak_bytes or 0) / 1e9:.2f} GB" if result.fits else verdict(result),
            f"{result.question.topology}, {result.hbm_bytes / 1e9:.2f} GB",
            _command(options),
        )
        for options, release, result in asked
        if result is not None
    ]
    header = (
        "model",
        "method",
        "base",
        "rows x tokens",
        "release",
        "here, a chip",
        "slice, a chip",
    )
    return markdown((*header, "options"), rows)


def _start(result: Result) -> tuple[str, ...]:
    asked = result.question
    hbm, peak = result.hbm_bytes / GIB, (result.peak_bytes or 0) / GIB
    memory = f"{peak:.2f} of {hbm:.2f}"
    if not result.fits:
        more = "more than " * (not result.found["refusal"]["whole"])
        memory = f"**does not fit**: {more}{memory}"
    model = asked.model if asked.quant == "none" else f"{asked.model}, {asked.quant}"
    return model, asked.topology, f"{asked.length:,}", f"{asked.rows}", memory


def _times(result: Result) -> tuple[str, ...]:
    """Compute; kernels and loops over data; exposed collectives."""
    made = result.estimate
    if made is None:
        return "", "", ""
    cells: dict[str, list[float | None]] = {"compute": [], "inner": [], "exposed": []}
    for part in made.parts:
        if part.name == "compute":
            cells["compute"].append(part.seconds)
        elif part.name.endswith(("kernel", "kernels", "loops over data")):
            cells["inner"].append(part.seconds)
        elif part.counted:
            cells["exposed"].append(part.seconds)
    return tuple(_sum(cell) for cell in cells.values())


def _sum(seconds: list[float | None]) -> str:
    known = [s for s in seconds if s is not None]
    unknown = " + ?" * (len(known) < len(seconds))
    return (duration(sum(known)) if known else "") + unknown


def _step(result: Result) -> str:
    return duration(result.estimate.seconds) if result.estimate else ""


def _utilisation(result: Result) -> str:
    return f"{result.estimate.utilisation:.0%}" if result.estimate else ""


def _command(options: str) -> str:
    return f"`{options}`"
