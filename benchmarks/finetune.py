"""How near each way of fine-tuning comes to training every weight, on a task made of real text.

    make demo
    python -m benchmarks.finetune --run demo

The model of ``make demo`` learns to answer questions about this Python's documentation
(``train.doc_questions``: what does ``shutil.copymode(src, dst)`` do?), with every method of
train.finetune, the same examples in the same order and the same number of steps. The loss is that
of answers about things that were held out. One JSON line: for each method the held-out loss before
and after, its ratio to that of ``full``, the parameters that were trained, and the seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from glm_jax import command_line
from glm_jax.data import FinetuneData
from glm_jax.data.sources import python_docs
from glm_jax.errors import UserError
from glm_jax.nn import Compute
from train import doc_questions, finetune, pictures
from train.finetuning.options import DEFAULTS, Finetune
from train.finetuning.run import FinetuneRun
from train.loop import Intervals
from train.schedules import Schedule

# What each method is, and the peak learning rate that suits a model this small: ten million
# parameters take larger steps than the releases' six thousand million.
METHODS: Mapping[str, tuple[str, float, Mapping[str, Any]]] = {
    "full": ("full", 1e-3, {}),
    "lora": ("lora", 5e-3, {"lora_targets": ("all-linear",), "lora_rank": 16}),
    "qlora": (
        "lora",
        5e-3,
        {"lora_targets": ("all-linear",), "lora_rank": 16, "base_quant": "int4", "base_group": 64},
    ),
    "ptuning": ("ptuning", 0.3, {"prefix_length": 64}),
    "freeze": ("freeze", 1e-3, {"freeze": "embedding,layers.0-1"}),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Every method of fine-tuning on one task, beside training every weight."""

    run: str = "demo"
    """Directory of a finished run of train.demo."""
    steps: int = 100
    """Of each method."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which; full is what the others are compared with."""
    peak: float = 0.0
    """Peak learning rate instead of the method's own, for finding it."""
    batch_size: int = 4
    seq_len: int = 64


def options(args: Args, method: str, folder: Path) -> Finetune:
    """What a user would write on the command line of train.finetune."""
    name, peak, more = METHODS[method]
    schedule = Schedule(args.peak or peak, args.steps, 0.06, 0.1, "cosine")
    return dataclasses.replace(
        DEFAULTS[name],
        ckpt=str(Path(args.run) / "model"),
        output=str(folder / method),
        data=FinetuneData(
            files=(str(folder / "train.jsonl"),),
            heldout=str(folder / "heldout.jsonl"),
            packing=False,  # a prefix needs it, and so all see the same examples in the same order
        ),
        chat_format="chatglm-6b",
        steps=args.steps,
        batch_size=args.batch_size,
        seq_len=args.seq_len,
        heldout_batches=20,
        optimizer=dataclasses.replace(DEFAULTS[name].optimizer, schedule=schedule),
        every=Intervals(log=10, heldout=0, save=0),
        compute=Compute(dtype="float32"),
        **more,
    )


def write_data(folder: Path) -> None:
    found = list(doc_questions.things(python_docs.stdlib_dir()))
    for name, held in (("train", False), ("heldout", True)):
        chosen = [doc_questions.conversation(t) for t in found if doc_questions.held_out(t) == held]
        doc_questions.write(folder / f"{name}.jsonl", chosen)


def measure(args: Args) -> dict[str, Any]:
    """The JSON line.

    Raises:
      UserError: the run's directory holds no model, or a method is unknown.
    """
    if not (Path(args.run) / "model").is_dir():
        raise UserError(f"--run {args.run} holds no model; make demo trains one")
    if unknown := set(args.methods) - set(METHODS):
        raise UserError(f"--methods {', '.join(sorted(unknown))}: there are {', '.join(METHODS)}")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_data(Path(scratch))
        for method in args.methods:
            found[method] = _train(options(args, method, Path(scratch)))
    if "full" in found:
        for numbers in found.values():
            numbers["ratio"] = round(numbers["loss"] / found["full"]["loss"], 4)
    sizes = {name: getattr(args, name) for name in ("run", "steps", "batch_size", "seq_len")}
    return {"benchmark": "finetune", **sizes, "methods": found}


def _train(args: Finetune) -> dict[str, Any]:
    began = time.monotonic()
    finetune.main(args)
    seconds = time.monotonic() - began
    first, *_, last = pictures.read_log(Path(args.output) / "log.jsonl")["heldout"]
    trained = sum(x.size for x in jax.tree.leaves(FinetuneRun.make(args).abstract().model))
    return {
        "before": round(first["task"], 4),
        "loss": round(last["task"], 4),
        "peak": args.optimizer.schedule.peak,
        "trained": trained,
        "seconds": round(seconds, 1),
    }


def main(argv: list[str]) -> None:
    print(json.dumps(measure(command_line.parse(Args, "python -m benchmarks.finetune", argv))))


if __name__ == "__main__":
    command_line.run(lambda: main(sys.argv[1:]))
