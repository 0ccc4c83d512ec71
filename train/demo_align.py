"""A small model learns to add from rewards alone, in minutes on a CPU.

    python -m train.demo_align [--method grpo|ppo] [--output demo/sums]

It writes every sum of two digits in four wordings, a fifth of the questions held out; makes a model
of a few hundred thousand parameters and shows it right answers until it knows how one looks, and
hardly more (``train.finetune``); then lets it answer by itself and rewards what is right
(``train.align``), which is told the right number but never shown it. Printed in the end: how often
its sampled answers to the held-out questions were right before and after.
"""

from __future__ import annotations

import builtins
import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Literal

import jax
import tyro

from glm_jax import UserError
from glm_jax.ckpts import save_model
from glm_jax.data import FinetuneData
from glm_jax.data.preference import PreferenceData
from glm_jax.nn import GLM, Compute
from glm_jax.text import train_sentencepiece
from train import align, cli, finetune, pictures
from train.alignment import options as aligning
from train.alignment.methods import Grpo, Ppo
from train.finetuning import options as finetuning
from train.loop import Intervals
from train.options import Model
from train.schedules import Schedule

FORMAT = "chatglm-6b"  # the chat format that was made for models which fill blanks
WORDINGS = ("{a} + {b} =", "What is {a} plus {b}?", "Add {b} to {a}.", "The sum of {a} and {b} is")
_COMPUTE = Compute(dtype="float32", remat="none")
_ROW = 16  # ids of the longest question with its answer


@dataclasses.dataclass(frozen=True)
class Options:
    """Teaches a small model to add, by rewards."""

    output: str = "demo/sums"
    """Directory for the data, the models and the logs."""
    method: Literal["grpo", "ppo"] = "grpo"
    """How it learns from rewards."""
    warmup: int = 145
    """Steps in which it is shown right answers."""
    steps: int = 250
    """Steps in which it is rewarded."""
    seed: int = 0
    """Fixes everything."""


def right(prompt: str, response: str, answer: str | None) -> float:
    """The reward: 1 for the right number and nothing else."""
    del prompt
    return float(response.strip() == answer)


def main(options: Options) -> dict[str, float]:
    """The mean reward on the held-out questions, before and after.

    Raises:
      UserError: a directory cannot be used, or training was stopped before its end.
    """
    output = Path(options.output)
    prepare(output, options.seed)
    for train, args in (
        (finetune.main, warmup_options(output, options)),
        (align.main, align_options(output, options)),
    ):
        if not train(args):
            raise UserError("stopped before the end; the same command goes on from there")
    first, *_, last = pictures.read_log(output / options.method / "log.jsonl")["heldout"]
    found = {"before": first["reward"], "after": last["reward"]}
    print(f"\nHeld-out sums, answered right: {found['before']:.2f} -> {found['after']:.2f}")
    return found


def prepare(output: Path, seed: int) -> None:
    """Writes the questions and a model that knows nothing."""
    output.mkdir(parents=True, exist_ok=True)
    every = [
        {"prompt": wording.format(a=a, b=b), "response": str(a + b), "answer": a + b}
        for wording in WORDINGS
        for a in range(10)
        for b in range(10)
    ]
    random.Random(seed).shuffle(every)
    parts = {"heldout": every[: len(every) // 5], "train": every[len(every) // 5 :]}
    for name, entries in parts.items():
        lines = [json.dumps(entry) + "\n" for entry in entries]
        (output / f"{name}.jsonl").write_text("".join(lines))
    folder = output / "tokenizer"
    texts = [text for thing in vars(builtins).values() if (text := thing.__doc__)]
    texts += [entry["prompt"] for entry in every]  # which alone hold too few pieces
    tokenizer = train_sentencepiece(texts, 512, folder)
    shape = Model("glm-base", num_layers=2, embed_dim=64, num_heads=4, max_seq_len=128, dropout=0.0)
    config = shape.config(tokenizer.vocab_size, tokenizer.special)
    model = GLM(config, jax.random.key(seed))
    save_model(output / "empty", model, config, tokenizer_dir=folder, overwrite=True)


def warmup_options(output: Path, options: Options) -> finetuning.Finetune:
    """What a user would write on the command line of train.finetune."""
    defaults = finetuning.DEFAULTS["full"]
    schedule = Schedule(2e-3, options.warmup, 0.1, 0.1, "cosine")
    return dataclasses.replace(
        defaults,
        ckpt=str(output / "empty"),
        output=str(output / "warm"),
        data=FinetuneData(files=(f"{output}/train.jsonl",), heldout=f"{output}/heldout.jsonl"),
        chat_format=FORMAT,
        steps=options.warmup,
        batch_size=8,
        seq_len=8 * _ROW,
        seed=options.seed,
        optimizer=dataclasses.replace(defaults.optimizer, schedule=schedule),
        every=Intervals(log=50, heldout=0, save=0),
        compute=_COMPUTE,
    )


def align_options(output: Path, options: Options) -> aligning.Align:
    """What a user would write on the command line of train.align."""
    defaults = aligning.DEFAULTS[options.method]
    own = {"max_new_tokens": 4, "updates": 2, "kl": 0.0}
    schedule = Schedule(1e-3, 400, 0.02, 0.3, "cosine")  # counts updates
    return dataclasses.replace(
        defaults,
        ckpt=str(output / "warm" / "model"),
        output=str(output / options.method),
        data=PreferenceData(files=(f"{output}/train.jsonl",), heldout=f"{output}/heldout.jsonl"),
        reward="train.demo_align:right",
        tune="full",
        steps=options.steps,
        batch_size=256,
        seq_len=_ROW,
        seed=options.seed,
        optimizer=dataclasses.replace(defaults.optimizer, schedule=schedule, beta2=0.98),
        grpo=Grpo(group=8, **own) if options.method == "grpo" else Grpo(),
        ppo=Ppo(group=8, value_weight=0.5, **own) if options.method == "ppo" else Ppo(),
        every=Intervals(log=1, heldout=50, save=0),
        compute=_COMPUTE,
    )


if __name__ == "__main__":
    prog = "python -m train.demo_align"
    cli.run(lambda: main(tyro.cli(Options, prog=prog, args=sys.argv[1:])))
