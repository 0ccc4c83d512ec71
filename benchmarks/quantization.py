"""What integer weights cost a model that was trained here, in perplexity on text it has not seen.

    make demo
    python -m benchmarks.quantization --run demo

The model of ``make demo`` is evaluated on its own held-out blanks, with its weights in float32 and
as integers, with one scale per output row (as released) and per group of columns. One JSON line:
for each form the perplexity per predicted token of every objective, its ratio to float32's, and the
bytes of the layers' matrices.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

import glm_jax
from glm_jax import command_line
from glm_jax.errors import UserError
from glm_jax.nn import GLM
from train.presets import DEMO
from train.run import Run


@dataclasses.dataclass(frozen=True)
class Args:
    """Perplexity of the demo's model with integer weights beside float32."""

    run: str = "demo"
    """Directory of a finished run of train.demo."""
    batches: int = 40
    """Held-out batches of each objective."""
    groups: tuple[int, ...] = (32, 64)
    """Columns per scale of int4."""


def forms(model: GLM, groups: tuple[int, ...]) -> dict[str, GLM]:
    """The model as it is and quantised, by name."""
    made = {"float32": model, "int8": glm_jax.quantize(model, "int8")}
    made["int4"] = glm_jax.quantize(model, "int4")
    for size in groups:
        made[f"int4, groups of {size}"] = glm_jax.quantize(model, "int4", size)
    return made


def measure(args: Args) -> dict[str, Any]:
    """The JSON line.

    Raises:
      UserError: the run's directory holds no model.
    """
    folder = Path(args.run)
    if not (folder / "model").is_dir():
        raise UserError(f"--run {args.run} holds no model; make demo trains one")
    options = dataclasses.replace(
        DEMO, output=args.run, tokenizer=str(folder / "model" / "tokenizer"),
        heldout_batches=args.batches,
    )  # fmt: skip
    run = Run.make(options)
    with jax.set_mesh(run.mesh):
        evaluate = run.heldout()
        found = {}
        for name, form in forms(glm_jax.load(folder / "model"), args.groups).items():
            losses = evaluate(form)
            found[name] = {
                "perplexity": {k: round(math.exp(v), 2) for k, v in losses.items()},
                "layer_mb": round(sum(x.nbytes for x in jax.tree.leaves(form.layers)) / 1e6, 2),
            }
    whole = found["float32"]["perplexity"]
    for form in found.values():
        form["ratio"] = {k: round(v / whole[k], 4) for k, v in form["perplexity"].items()}
    return {"benchmark": "quantization", "run": args.run, "batches": args.batches, "forms": found}


def main(argv: list[str]) -> None:
    print(json.dumps(measure(command_line.parse(Args, "python -m benchmarks.quantization", argv))))


if __name__ == "__main__":
    command_line.run(lambda: main(sys.argv[1:]))
