"""Which chips, models and lengths the attention kernel compiles for. No TPU is needed.

    python -m benchmarks.attention.compile --chips v5e v5p

Compiles one layer's attention of one row in bfloat16, forward and backward, with the real TPU
compiler, and prints a line per program and at last one JSON line. A program that needs more than
the device's memory is tried again with the heads shared by twice as many devices, as tensor
parallelism would. Any other refusal is a fault, and the exit status says so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time

import jax
import tyro

from benchmarks.attention.programs import LENGTHS, MODELS, SLICES, Program, lower
from train.planning.compiler import ENVIRONMENT
from train.planning.tables import markdown


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compile: everything by default, which takes a quarter of an hour of one core."""

    chips: tuple[str, ...] = tuple(SLICES)
    """Kinds of TPU."""
    models: tuple[str, ...] = MODELS
    """Names of glm_jax.presets, for their heads; or heads as 32x2x96: query heads, key heads,
    channels."""
    lengths: tuple[int, ...] = LENGTHS
    """Tokens of the row."""
    table: bool = False
    """Print the table of docs/kernels.md instead of JSON."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What the compiler said."""

    program: Program
    error: str | None
    temporaries: int | None
    """Bytes."""
    seconds: float


def attempt(program: Program) -> Found:
    """Compiles it, shared by as few devices as its memory allows."""
    began = time.monotonic()
    while True:
        try:
            memory = lower(program).compile().memory_analysis()
            error, size = None, memory.temp_size_in_bytes
            break
        except jax.errors.JaxRuntimeError as refused:
            error, size = str(refused), None
        half = dataclasses.replace(program, tensor=2 * program.tensor)
        if "on HBM" not in error or half.heads[0] < 1:
            break
        program = half
    return Found(program, error, size, round(time.monotonic() - began, 1))


def line(found: Found) -> str:
    name = f"{found.program.chip} {found.program.model} {found.program.length}"
    return f"{name}: {cell(found)} ({found.seconds:.0f} s)"


def cell(found: Found) -> str:
    if found.error:
        return "no: " + re.sub(r"\s+", " ", found.error)[:200]
    share = f", 1/{found.program.tensor} of the heads" if found.program.tensor > 1 else ""
    return f"{found.temporaries / 2**30:.2f} GiB{share}"


def table(results: list[Found], options: Options) -> str:
    by_key = {(f.program.model, f.program.length, f.program.chip): f for f in results}
    rows = [
        [model, f"{length:,}", *(cell(by_key[model, length, chip]) for chip in options.chips)]
        for model in options.models
        for length in options.lengths
    ]
    return markdown(["heads of", "tokens", *options.chips], rows)


def main(options: Options) -> None:
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    results, same = [], {}
    for chip in options.chips:
        for model in options.models:
            for length in options.lengths:
                program = Program(chip, model, length)
                key = chip, program.heads, length
                if key not in same:
                    same[key] = attempt(program)
                    print(line(same[key]), file=sys.stderr, flush=True)
                mine = dataclasses.replace(same[key].program, model=model)
                results.append(dataclasses.replace(same[key], program=mine))
    if options.table:
        print(table(results, options))
    else:
        programs = [{**dataclasses.asdict(f), **dataclasses.asdict(f.program)} for f in results]
        for fields in programs:
            del fields["program"]
        print(json.dumps({"benchmark": "attention.compile", "programs": programs}))
    sys.exit(any(f.error for f in results))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
