"""What fits on a TPU slice and how fast it can be at most: ``python -m train.plan --help``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from glm_jax.command_line import parse, run
from glm_jax.config import preset
from glm_jax.errors import UserError
from glm_jax.nn.compute import Remat
from train.finetuning.options import DEFAULTS
from train.planning import cache, compiler, documents, tables
from train.planning.question import Method, Quant, Question, Task, check, default_mesh, parse_mesh
from train.planning.result import Result
from train.planning.search import check_searchable, rank, search, upper_count
from train.planning.topology import topology


@dataclasses.dataclass(frozen=True)
class Plan:
    """Compiles the project's own program for a TPU slice that need not be there, and says what the
    compiler says of it.

      python -m train.plan --model glm-4-9b --topology v5p-128 --task pretrain --seq-len 8192
      python -m train.plan --model glm-4-9b --topology v5p-128 --task pretrain --search
      python -m train.plan --model chatglm3-6b --topology v5e-1 --task finetune --method lora
      python -m train.plan --model chatglm2-6b --topology v5e-1 --task decode --quant int4

    No TPU is needed, but its compiler: pip install 'jax[tpu]'. Answers are kept in ~/.cache/glm_jax
    (or $XDG_CACHE_HOME) until the model code, this planner or JAX changes.
    """

    model: str = "glm-4-9b"
    """A model of glm_jax.presets."""
    topology: str = "v5p-128"
    """As rented: v5p-128 and v4-8 (counting cores, two a chip), v5e-256 and v6e-8 (chips),
    tpu7x-8 (cores), 2xv5e-256 (slices)."""
    task: Task = "pretrain"
    """pretrain: a step of full-parameter AdamW; finetune: a step of --method; prefill: reading one
    piece of a prompt; decode: writing one token."""
    method: Method = "lora"
    """What finetune trains, with the defaults of python -m train.finetune --method METHOD."""
    seq_len: int = 0
    """Tokens per row in training; 0: what the model was trained on, at most 8192; in finetune 768,
    which is that script's default."""
    context: int = 8192
    """Cache slots per row in prefill and decode."""
    batch_per_chip: int = 1
    """Rows per device of data x fsdp, in training."""
    batch: int = 0
    """Rows in all, in prefill and decode; 0: one to each group of devices that shares a row."""
    mesh: str = ""
    """As fsdp=64 or data=2,fsdp=16,tensor=2; empty: fsdp over a slice in training, tensor in
    inference."""
    remat: Remat = "full"
    """What the backward pass recomputes (glm_jax.nn.Compute)."""
    quant: Quant = "none"
    """Integers for the matrices of every layer, where these do not train."""
    param_dtype: str = "float32"
    """Of trained weights and optimizer state."""
    large_fusions: bool = True
    """The option of train.pretrain on v5e and v5p; without it the compiler answers in half the
    time, and --search always goes without."""
    search: bool = False
    """Try meshes, remat policies and batches, and rank what fits."""
    json: bool = False
    """One line of JSON instead of tables; with --search one a plan."""
    table: Literal["", "known", "all"] = ""
    """Write the tables of docs/tpu.md and docs/finetuning.md anew; known: the rows whose answers
    are kept, all: compile what is missing."""
    timeout: float = 900.0
    """Seconds that one compilation may take."""
    keep_hlo: str = ""
    """A file for the optimized HLO."""

    def question(self) -> Question:
        """What is asked, with its defaults filled in.

        Raises:
          UserError: an unknown model or topology, or sizes that do not fit together.
        """
        where = topology(self.topology)
        try:
            config = preset(self.model)
        except KeyError as error:
            raise UserError(f"--model: {error.args[0]}") from None
        if self.param_dtype not in ("float32", "bfloat16"):
            raise UserError(f"--param-dtype {self.param_dtype} is not float32 or bfloat16")
        training = self.task in ("pretrain", "finetune")
        mesh = (
            parse_mesh(self.mesh, where.devices)
            if self.mesh
            else default_mesh(config, where, self.task)
        )
        ways = mesh[0] * mesh[1]
        rows = self.batch_per_chip * ways if training else self.batch or ways
        usual = DEFAULTS[self.method].seq_len if self.task == "finetune" else 8192
        length = (self.seq_len or min(config.max_seq_len, usual)) if training else self.context
        if config.position == "learned" and not training:
            length = min(length, config.max_seq_len)
        return check(
            Question(
                self.model,
                self.topology,
                self.task,
                mesh,
                length,
                rows,
                self.remat if training else "none",
                self.quant,
                self.param_dtype,
                self.method if self.task == "finetune" else "full",
                self.large_fusions and not self.search,
            )
        )


def main(args: Plan) -> None:
    """Answers and prints; the exit status does not say whether it fits, ``--json`` does.

    Raises:
      UserError: one line that says what is wrong.
    """
    if args.table:
        documents.rewrite(lambda options: _row(options, args))
        return
    question, console = args.question(), Console(highlight=False, stderr=args.json)
    if not console.is_terminal:
        console.width = 120  # where rich finds no terminal it assumes 80 columns
    if args.search:
        check_searchable(question)
        _search(args, question, console)
        return
    with console.status("compiling"):
        found = compiler.ask(question, timeout=args.timeout, hlo_path=args.keep_hlo)
    result = Result(question, found)
    if args.json:
        print(json.dumps(result.to_dict()))
    else:
        tables.show(result, console)


def _row(options: str, args: Plan) -> Result | None:
    """One row of a table, said as it comes."""
    question = parse(Plan, "python -m train.plan", options.split()).question()
    if args.table == "known" and cache.load(cache.key(question)) is None:
        return None
    try:
        result = Result(question, compiler.ask(question, timeout=args.timeout))
    except UserError as error:
        print(f"{options}: {error}", file=sys.stderr, flush=True)
        return None
    print(f"{options}: {tables.verdict(result)}", flush=True)
    return result


def _search(args: Plan, question: Question, console: Console) -> None:
    results: list[Result] = []

    def ask(plan: Question) -> dict[str, Any]:
        return compiler.ask(plan, timeout=args.timeout)

    columns = TextColumn("{task.completed}/{task.total}"), BarColumn(16), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.description}"), console=console) as bar:
        shown = bar.add_task("", total=upper_count(question))
        say = lambda command: bar.update(shown, description=command.partition("--mesh ")[2])
        for result in search(question, ask, say):
            results.append(result)
            bar.advance(shown)
            if args.json:
                print(json.dumps(result.to_dict()), flush=True)
        bar.update(shown, total=len(results), description="done")
    if not args.json:
        tables.ranked(rank(results), console)
        best = rank(results)[0]
        console.print(best.question.command() if best.fits else "nothing fits", soft_wrap=True)


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and answers."""
    argv = sys.argv[1:] if argv is None else argv
    main(parse(Plan, "python -m train.plan", argv))


if __name__ == "__main__":
    run(cli_main)
