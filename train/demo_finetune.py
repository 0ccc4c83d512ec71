"""``make demo-finetune``: the demo's pretrained model learns to answer questions about Python.

    python -m train.demo_finetune [--run demo] [--output demo/chat] [--max-minutes 3.5]

It makes questions about well-known modules from this Python's documentation
(``train.doc_questions``), asks the pretrained model, fine-tunes all of it with train.finetune, a
tenth of the tokens being plain documentation against forgetting, asks again, and prints ten of the
answers beside the documentation's and how many of all are right. The questions that are asked are
put in a way that was held out: the model has learned what the documentation says, and not these
questions.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

import glm_jax
from glm_jax.chat import Message, parse_reply, render
from glm_jax.data import FinetuneData, open_corpus
from glm_jax.data.sources import python_docs
from glm_jax.nn import GLM
from glm_jax.text.tokenizer import Tokenizer
from train import cli, demo, doc_questions, finetune, pictures
from train.finetuning import metrics
from train.finetuning.options import DEFAULTS, Finetune
from train.loop import Intervals
from train.presets import DEMO
from train.schedules import Schedule

FORMAT = "chatglm-6b"  # the chat format that was made for models which fill blanks
SHOWN = 10
_STEPS = 650
_ROW = 128  # tokens: five questions and their answers
_ANSWER = 64  # tokens, more than any answer has
_DOCUMENTATION = 0.02  # of the examples, which are as long as a row


@dataclasses.dataclass(frozen=True)
class Options:
    """Makes a chat model of the demo's pretrained model and shows what it answers."""

    run: str = "demo"
    """Directory of train.demo; it is run first where there is no model in it."""
    output: str = "demo/chat"
    """Directory for the questions, the chat model, the log and the picture."""
    max_minutes: float = 3.5
    """Training time; the number of steps is chosen from this machine's speed. 0: no limit."""
    steps: int = _STEPS
    """Most steps to train."""


def main(options: Options) -> None:
    """Raises UserError: a directory cannot be used, or training was stopped before its end."""
    base, output = Path(options.run) / "model", Path(options.output)
    if not base.is_dir():
        demo.main(demo.Options(output=options.run))
    args = prepare(base, output, options)
    tokenizer, facts = glm_jax.load_tokenizer(base), all_facts()
    before = answers(glm_jax.load(base), tokenizer, facts)
    if not finetune.main(args):
        raise glm_jax.UserError("stopped before the end; the same command goes on from there")
    after = answers(glm_jax.load(output / "model"), tokenizer, facts)
    log = pictures.read_log(output / "log.jsonl")
    demo.print_losses(log["heldout"], pictures.PART_NAMES)
    show(facts, before, after)
    print_scores(facts, before, after)
    title = "Loss of fine-tuning on questions about Python"
    pictures.loss_curves(log, output / "loss.png", pictures.PART_NAMES, title)
    print(f"\nchat model in {output}/model; picture: {output}/loss.png")
    print(f"talk to it: python -m glm_jax.cli chat {output}/model --temperature 0")


def prepare(base: Path, output: Path, options: Options) -> Finetune:
    """Writes the data into the output directory; the options of the run on it."""
    output.mkdir(parents=True, exist_ok=True)
    facts = all_facts()
    held_out = [[(doc_questions.HELD_OUT.format(t.name), t.summary)] for t in facts]
    talks = {"train": doc_questions.fact_conversations(facts), "heldout": held_out}
    for name, conversations in talks.items():
        count = doc_questions.write(output / f"{name}.jsonl", conversations)
        print(f"{output}/{name}.jsonl: {count} conversations about {len(facts)} things")
    texts = open_corpus(DEMO.data, "train")
    lines = (json.dumps({"text": texts[i]}) + "\n" for i in range(len(texts)))
    (output / "general.jsonl").write_text("".join(lines))
    return finetune_options(base, output, options)


def finetune_options(base: Path, output: Path, options: Options) -> Finetune:
    """What a user would write on the command line of train.finetune."""
    defaults = DEFAULTS["full"]
    schedule = Schedule(2e-3, options.steps, 0.06, 0.05, "cosine")
    optimizer = dataclasses.replace(defaults.optimizer, schedule=schedule, beta2=0.98)
    return dataclasses.replace(
        defaults,
        ckpt=str(base),
        output=str(output),
        data=FinetuneData(
            files=(f"{output}/train.jsonl",),
            heldout=f"{output}/heldout.jsonl",
            replay=(f"{output}/general.jsonl",),
            replay_ratio=_DOCUMENTATION,
        ),
        chat_format=FORMAT,
        steps=options.steps,
        batch_size=2,
        seq_len=_ROW,
        max_minutes=options.max_minutes,
        heldout_batches=4,
        optimizer=optimizer,
        every=Intervals(log=1, heldout=100, save=200),
        compute=DEMO.compute,
        keep=1,
    )


@functools.cache
def all_facts() -> tuple[doc_questions.Thing, ...]:
    return tuple(doc_questions.facts(doc_questions.things(python_docs.stdlib_dir())))


def answers(model: GLM, tokenizer: Tokenizer, facts: Sequence[doc_questions.Thing]) -> list[str]:
    """What the model says to the held-out question about each fact, by greedy choice."""
    prompts = [
        render([Message("user", question(thing))], tokenizer, format=FORMAT) for thing in facts
    ]
    found = glm_jax.generate(model, prompts, max_new_tokens=_ANSWER, vocab_limit=tokenizer.used)
    return [parse_reply(tokenizer.decode(ids), FORMAT).text for ids in found]


def question(thing: doc_questions.Thing) -> str:
    return doc_questions.HELD_OUT.format(thing.name)


def show(facts: Sequence[doc_questions.Thing], before: Sequence[str], after: Sequence[str]) -> None:
    """Some of the answers, side by side."""
    table = Table(title="Asked in words that were held out", show_lines=True)
    for name in ("question", "before", "after", "the documentation"):
        table.add_column(name, ratio=1, overflow="fold")
    rows = list(zip(facts, before, after, strict=True))
    for thing, old, new in rows[:: max(1, len(rows) // SHOWN)][:SHOWN]:
        row = question(thing), old, new, thing.summary
        table.add_row(*(" ".join(text.split()) for text in row))
    console = Console(highlight=False, markup=False)
    console = console if console.is_terminal else Console(width=150, markup=False, highlight=False)
    console.print(table)


def print_scores(
    facts: Sequence[doc_questions.Thing], before: Sequence[str], after: Sequence[str]
) -> None:
    """How many of all answers are the documentation's sentence, and how near the others come."""
    truths = [thing.summary for thing in facts]
    print(f"\nAll {len(facts)} questions, each asked in words that were held out:")
    for name, said in (("before", before), ("after", after)):
        right = sum(answer.strip() == truth for answer, truth in zip(said, truths, strict=True))
        near = metrics.rouge(said, truths, metrics.words)["rouge-l"]
        print(f"  {name:6} {right:3} word for word as documented; ROUGE-L {near:.1f} %")


if __name__ == "__main__":
    prog = "python -m train.demo_finetune"
    cli.run(lambda: main(tyro.cli(Options, prog=prog, args=sys.argv[1:])))
