"""The tables of docs/tpu.md: a grid of commands, and the rows that they answer with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from train.planning import cache
from train.planning.estimate import memory_floor
from train.planning.result import Result
from train.planning.tables import GIB, duration, markdown

DOCUMENT = cache.ROOT / "docs" / "tpu.md"

# What one would rent for each: small models on one host, large ones on a pod slice, and the largest
# on one host where that shows by how much it does not fit.
TRAINING = tuple(
    f"--model {model} --topology {slice_} --seq-len {length}{more}"
    for model, length, slices, more in (
        ("glm-4-9b", 8192, ("v5e-8", "v5p-8", "v5p-128", "v5e-256", "v6e-256"), ""),
        ("chatglm2-6b", 8192, ("v6e-8", "v5p-8", "v5p-128", "v5e-256", "v6e-256"), ""),
        ("glm-10b", 1024, ("v5e-8", "v5p-8", "v5e-256", "v5p-128", "v6e-256"), ""),
        ("chatglm-6b", 2048, ("v5p-8", "v5e-256", "v5p-128", "v6e-256"), ""),
        ("glm-2b", 1024, ("v5e-8", "v6e-8"), ""),
        ("glm-large", 512, ("v5e-8", "v6e-8"), " --batch-per-chip 8"),
    )
    for slice_ in slices
)
INFERENCE = tuple(
    f"--task {task} --model {model} --topology {slice_} --context {context}{more}"
    for task, model, context, more, slices in (
        ("decode", "glm-10b", 1024, "", ("v6e-1", "v5e-8")),
        ("decode", "chatglm-6b", 2048, " --quant int4", ("v5e-1",)),
        ("decode", "chatglm2-6b", 8192, " --quant int4", ("v5e-1", "v6e-1")),
        ("decode", "chatglm2-6b", 8192, " --quant int8", ("v5e-1",)),
        ("decode", "chatglm2-6b", 8192, "", ("v5e-1", "v5e-8", "v6e-1", "v5p-8")),
        ("decode", "glm-4-9b-chat", 8192, "", ("v5e-8", "v6e-1", "v6e-8", "v5p-8")),
        ("decode", "glm-4-9b-chat", 131072, "", ("v5e-8", "v6e-8", "v5p-8")),
        ("prefill", "chatglm2-6b", 8192, "", ("v5e-8", "v6e-8", "v5p-8")),
        ("prefill", "glm-4-9b-chat", 131072, "", ("v6e-8", "v5p-8")),
    )
    for slice_ in slices
)

Answer = Callable[[str], Result | None]
"""From a command's options to its result; None where the compiler gave none in time."""


def rewrite(answer: Answer, path: Path = DOCUMENT) -> None:
    """Asks every command of the grid and puts the tables between their marks in the document."""
    text = path.read_text()
    # Inference compiles in seconds, so it comes first.
    inference = [(options, answer(options)) for options in INFERENCE]
    training = [(options, answer(options)) for options in TRAINING]
    text = _put(text, "inference", _inference(inference))
    text = _put(text, "training", _training(training))
    versions = ", ".join(f"{name} {cache.version(name)}" for name in ("jax", "libtpu"))
    text = _put(text, "versions", f"Compiled with {versions}.\n")
    path.write_text(text)


def _put(text: str, name: str, inside: str) -> str:
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    marks = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
    if not marks.search(text):
        raise ValueError(f"the document has no marks for {name!r}: {begin.strip()} ... {end}")
    return marks.sub(lambda found: f"{found[1]}\n{inside}\n{found[2]}", text)


Asked = Sequence[tuple[str, Result | None]]
_HEADER = ("model", "slice", "tokens a row", "rows", "memory, GiB", "compute", "kernels, loops",
           "links")  # fmt: skip


def _training(asked: Asked) -> str:
    rows = [
        (*_start(result), *_times(result), _step(result), _utilisation(result), _command(options))
        if result
        else _missing(options, 11)
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
        if result
        else _missing(options, 12)
        for options, result in asked
    ]
    return markdown(("task", *_HEADER, "step at least", "memory read once", "options"), rows)


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


def _missing(options: str, columns: int) -> tuple[str, ...]:
    return (*[""] * (columns - 2), "no answer in time", _command(options))
