"""The tables of docs/tpu.md and docs/finetuning.md: rows that the compiler's answers make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from train.planning import cache
from train.planning.estimate import memory_floor
from train.planning.grids import FINETUNING, INFERENCE, TRAINING
from train.planning.result import Result
from train.planning.tables import GIB, duration, markdown, verdict, weights

DOCS = cache.ROOT / "docs"

Answer = Callable[[str], Result | None]
"""From a command's options to its result; None where there is none."""

_COMMON = ("model", "slice", "tokens a row", "rows", "memory, GiB", "compute", "kernels, loops",
           "links", "step at least")  # fmt: skip
_TRAINING = (*_COMMON, "utilisation at most")
_INFERENCE = ("task", *_COMMON, "memory read once")
_FINETUNING = ("model", "method", "base", "rows x tokens", "release", "here, a chip",
               "slice, a chip")  # fmt: skip


def rewrite(answer: Answer, docs: Path = DOCS) -> None:
    """Asks every command of the grids and puts the tables between their marks in tpu.md and
    finetuning.md. A row without an answer stays as the document has it, and is left out where it
    has none; the versions are said anew where no row stayed."""
    tuned, pods = docs / "finetuning.md", docs / "tpu.md"
    release = dict(FINETUNING)
    finetuning = lambda options, result: _finetuning(result, release[options])
    # What compiles in seconds comes first.
    new = _rewrite(tuned, "memory", _FINETUNING, release, finetuning, answer)
    new &= _rewrite(pods, "inference", _INFERENCE, INFERENCE, lambda _, r: _inference(r), answer)
    new &= _rewrite(pods, "training", _TRAINING, TRAINING, lambda _, r: _training(r), answer)
    if new:
        versions = ", ".join(f"{name} {cache.version(name)}" for name in ("jax", "libtpu"))
        for document in (tuned, pods):
            _put(document, "versions", f"Compiled with {versions}.\n")


def _rewrite(
    document: Path,
    name: str,
    header: Sequence[str],
    grid: Iterable[str],
    row: Callable[[str, Result], Sequence[str]],
    answer: Answer,
) -> bool:
    """One table, each row's options in its last column; whether all of it is new."""
    was = [line.strip("| ").split(" | ") for line in _marked(document, name)[1].splitlines()]
    stands = {cells[-1]: cells for cells in was}
    rows, new = [], True
    for options in grid:
        command, result = f"`{options}`", answer(options)
        if result is not None:
            rows.append([*row(options, result), command])
        elif command in stands:
            rows.append(stands[command])
            new = False
    _put(document, name, markdown((*header, "options"), rows))
    return new


def _marked(document: Path, name: str) -> tuple[str, str, str]:
    """A document's text before, between and after a pair of marks."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found, rest = document.read_text().partition(begin)
    inside, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{document} has no marks for {name!r}: {begin.strip()} ... {end}")
    return before + begin, inside, end + after


def _put(document: Path, name: str, inside: str) -> None:
    before, _, after = _marked(document, name)
    document.write_text(f"{before}\n{inside}\n{after}")


def _training(result: Result) -> tuple[str, ...]:
    return (*_start(result), *_times(result), _step(result), _utilisation(result))


def _inference(result: Result) -> tuple[str, ...]:
    floor = duration(memory_floor(result.question, result.found))
    return (result.question.task, *_start(result), *_times(result), _step(result), floor)


def _finetuning(result: Result, release: str) -> tuple[str, ...]:
    asked = result.question
    return (
        asked.model,
        asked.method,
        "" if asked.method == "full" else weights(asked.quant),
        f"{asked.rows} x {asked.length}",
        release,
        f"{(result.peak_bytes or 0) / 1e9:.2f} GB" if result.fits else verdict(result),
        f"{asked.topology}, {result.hbm_bytes / 1e9:.2f} GB",
    )


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
