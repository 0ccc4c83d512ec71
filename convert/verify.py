"""Is anything lost? ``python -m convert.verify SRC DST`` compares every tensor, and the logits."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import threading
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":  # comparing computes nothing on an accelerator
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

from convert import reference
from convert.adapters import without_prefix
from convert.checkpoint import open_released
from convert.engine import cast
from convert.plan import Plan, make_plan
from convert.progress import byte_progress
from convert.store import CHUNK_BYTES, ParamsReader, lead_rows
from convert.table import Move, Rule
from convert.tensors import num_bytes
from convert.to_torch import check_shapes
from convert.workers import run_all
from glm_jax import command_line
from glm_jax.ckpts.model_dir import load_config

_NUMBER = re.compile(r"\.\d+\.")
LOGIT_TOLERANCE = 2e-4  # float32 noise of the released code itself is 1e-5


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares a released checkpoint with the model directory made from it.

    Every tensor is read from both sides and compared number by number, in the type that DST has.
    The exit status is 1 where anything differs.

    Example: python -m convert.verify THUDM/glm-4-9b-chat ckpt/glm-4-9b-chat --logits
    """

    src: Annotated[Path, tyro.conf.Positional]
    """Folder with the released files."""
    dst: Annotated[Path, tyro.conf.Positional]
    """Model directory."""
    logits: bool = False
    """Run both models as well: needs pip install torch transformers, memory for both in float32,
    and a network that Transformers has (ChatGLM2, ChatGLM3, GLM-4)."""


@dataclasses.dataclass
class Row:
    """What the tensors of one name, over all layers, have in common."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int = 0
    differing: int = 0
    largest: float = 0.0


def compare(src: Path, dst: Path, *, progress: bool = False) -> tuple[Plan, list[Row]]:
    """Every released tensor beside ours, grouped by name.

    Raises:
      UserError: either side is unreadable or does not fit together.
    """
    released, _ = without_prefix(open_released(src))
    config = load_config(dst)
    plan = make_plan(released, keep_quantized=config.quantization != "none")
    shapes = {name: shape for name, (shape, _) in plan.targets.items()}
    reader = ParamsReader(dst)
    check_shapes(dst, shapes, reader)
    lead = {name: lead_rows(name, *reader.specs[name], CHUNK_BYTES) for name in shapes}
    rows: dict[str, Row] = {}
    for rule in plan.rules:
        name = _NUMBER.sub(".{i}.", rule.theirs)
        source = plan.sources[rule.theirs]
        rows.setdefault(name, Row(name, rule.shape, str(source.dtype))).count += 1
    lock = threading.Lock()
    with byte_progress("comparing", plan.num_bytes, progress) as advance:

        def one(item: tuple[Rule, Move]) -> None:
            rule, move = item
            block = plan.sources[rule.theirs].rows(move.start, move.stop)
            views = rule.views(block, move)
            for part, x in zip(move.parts, views, strict=True):
                ours = reader.read(part)
                theirs = np.ascontiguousarray(cast(x, ours.dtype, rule.theirs))
                if theirs.tobytes() != ours.tobytes():
                    gap = np.abs(theirs.astype(np.float64) - ours.astype(np.float64))
                    with lock:
                        row = rows[_NUMBER.sub(".{i}.", rule.theirs)]
                        row.differing += int((theirs != ours).sum()) or 1
                        row.largest = max(row.largest, float(np.nanmax(gap)))
            advance(block.nbytes)

        run_all(one, ((rule, move) for rule in plan.rules for move in rule.moves(lead)))
    return plan, list(rows.values())


def table(rows: list[Row]) -> Table:
    """The comparison for people."""
    out = Table("tensor", "shape", "type", "count", "differing numbers", "largest difference")
    for row in rows:
        largest = f"{row.largest:.3g}" if row.differing else "0"
        shape = " x ".join(map(str, row.shape))
        style = "red" if row.differing else None
        cells = (row.name, shape, row.dtype, str(row.count), str(row.differing), largest)
        out.add_row(*cells, style=style)
    return out


def main(args: Args) -> int:
    """Prints the table; returns the exit status."""
    plan, rows = compare(args.src, args.dst, progress=True)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table(rows))
    bad = sum(row.count for row in rows if row.differing)
    total = sum(row.count for row in rows)
    gigabytes = sum(num_bytes(x) for x in plan.sources.values()) / 1e9
    if bad:
        print(f"DIFFERENT: {bad} of {total} tensors")
    else:
        print(f"equal: all {total} tensors, {gigabytes:.2f} GB, bit for bit")
    if not args.logits:
        return 1 if bad else 0
    gap = reference.logit_difference(args.src, args.dst, plan)
    fits = gap <= LOGIT_TOLERANCE
    print(f"logits: largest difference {gap:.2e}, {'within' if fits else 'BEYOND'} "
          f"{LOGIT_TOLERANCE:.0e}")  # fmt: skip
    return 0 if fits and not bad else 1


def cli_main() -> None:
    sys.exit(main(command_line.parse(Args, "python -m convert.verify", sys.argv[1:])))


if __name__ == "__main__":
    command_line.run(cli_main)
