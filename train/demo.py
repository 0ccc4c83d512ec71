"""``make demo``: a small GLM learns from this Python's documentation, then fills blanks.

    python -m train.demo [--output demo] [--max-minutes 4]

It trains the ``demo`` preset of train.pretrain (about 10 million parameters, all three objectives),
prints held-out losses before and after and ten blanks beside the truth, and leaves in its output
directory the model, the logs and the pictures.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tyro

from glm_jax.ckpts import load_model
from glm_jax.data import DataConfig, Example, layout_spans, make_loader, open_corpus
from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.text import SentencePieceTokenizer, load_tokenizer
from glm_jax.text.infill import fill_greedily
from train import cli, pictures, pretrain
from train.options import Pretrain
from train.presets import DEMO

BLANKS = 10
CONTEXT = 96  # tokens of text around a blank
SHOWN = 34  # characters of it that are printed on each side


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains a small GLM on this Python's documentation and shows what it learned."""

    output: str = "demo"
    """Directory for the model, the logs and the pictures."""
    max_minutes: float = DEMO.max_minutes
    """Training time; the number of steps is chosen from this machine's speed. 0: no limit."""
    steps: int = DEMO.steps
    """Most steps to train."""


def main(options: Options) -> None:
    """Raises UserError: the output cannot be written, or training was stopped before its end."""
    args = dataclasses.replace(
        DEMO, output=options.output, max_minutes=options.max_minutes, steps=options.steps
    )
    output = Path(options.output)
    if not pretrain.main(args):
        raise UserError("stopped before the end; the same command goes on from there")
    log = pictures.read_log(output / "log.jsonl")
    model, tokenizer = load_model(output / "model"), load_tokenizer(output / "tokenizer")
    print_losses(log["heldout"])
    print_blanks(model, tokenizer, args)
    draw(log, tokenizer, args, output)


def print_losses(
    heldout: list[dict[str, float]], names: Mapping[str, str] = pictures.OBJECTIVE_NAMES
) -> None:
    """Held-out losses at the start and at the end."""
    first, last = heldout[0], heldout[-1]
    print(f"\nHeld-out loss (nats per token), step {first['step']} -> {last['step']}:")
    width = max(map(len, names.values()))
    for name, label in names.items():
        if name in first:
            fall = first[name] - last[name]
            change = f"{'fell' if fall >= 0 else 'rose'} by {abs(fall):.4f}"
            print(f"  {label:{width}} {first[name]:7.4f} -> {last[name]:7.4f}   {change}")


def print_blanks(model: GLM, tokenizer: SentencePieceTokenizer, args: Pretrain) -> None:
    """Ten blanks from held-out text, each filled greedily, beside the truth."""
    found = blanks(tokenizer, args.data, args.seed)
    part_as = [e.tokens[: e.sep] for e in found]
    mask_at = [int(e.positions[0, e.sep]) for e in found]
    filled = fill_greedily(model, part_as, mask_at)
    print(f"\n{len(found)} blanks in held-out text:")
    for example, at, ids in zip(found, mask_at, filled, strict=True):
        left = _line(tokenizer.decode(example.tokens[1:at]))[-SHOWN:]
        right = _line(tokenizer.decode(example.tokens[at + 1 : example.sep]))[:SHOWN]
        truth = _line(tokenizer.decode(example.targets[example.sep : -1])).strip()
        print(f"  {left:>{SHOWN}} [____] {right}")
        print(f"  {'':>{SHOWN}} model: {tokenizer.decode(ids)!r}  truth: {truth!r}")


def blanks(tokenizer: SentencePieceTokenizer, data: DataConfig, seed: int) -> list[Example]:
    """One blank of one to three whole words in each of ten held-out documents."""
    corpus, rng = open_corpus(data, "heldout"), np.random.default_rng(seed)
    special, found = tokenizer.special, []
    for index in rng.permutation(len(corpus)):
        ids = tokenizer.encode(corpus[int(index)], add_special_tokens=False)[: CONTEXT - 2]
        text = np.array([special.cls, *ids, special.eos], np.int32)
        words = [i for i in range(1, len(text) - 1) if _starts_word(tokenizer, int(text[i]))]
        if len(words) < 20:
            continue
        first = int(rng.integers(8, len(words) - 4))
        span = (words[first], words[first + int(rng.integers(1, 4))])
        mask, sop, eop = special.require("mask", "sop", "eop")
        found.append(layout_spans(text, [span], [0], mask_id=mask, sop_id=sop, eop_id=eop))
        if len(found) == BLANKS:
            break
    return found


def _starts_word(tokenizer: SentencePieceTokenizer, token: int) -> bool:
    return tokenizer.token_bytes(token)[:1] == b" "


def _line(text: str) -> str:
    return " ".join(text.split())


def draw(log, tokenizer: SentencePieceTokenizer, args: Pretrain, output: Path) -> None:
    """loss.png and packed_row.png."""
    pictures.loss_curves(log, output / "loss.png")
    loader = make_loader(
        args.data,
        tokenizer,
        split="train",
        batch_size=args.batch_size,
        seq_len=args.seq_len,
        seed=args.seed,
    )
    batches = [next(loader) for _ in range(8)]
    pictures.packed_row(pictures.fullest_row(batches), output / "packed_row.png")
    loader.close()
    print(f"\nmodel in {output}/model; pictures: {output}/loss.png, {output}/packed_row.png")
    print(f"TensorBoard: tensorboard --logdir {output}/tensorboard")


if __name__ == "__main__":
    cli.run(lambda: main(tyro.cli(Options, prog="python -m train.demo", args=sys.argv[1:])))
