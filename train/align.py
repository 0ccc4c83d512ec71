"""Alignment with preferences and rewards: ``python -m train.align --help``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import jax

from train import cli, session
from train.alignment.grpo import GrpoRun
from train.alignment.options import DEFAULTS, Align
from train.alignment.pairs import DpoRun, RewardRun
from train.alignment.ppo import PpoRun
from train.alignment.run import AlignRun
from train.budget import within_time
from train.distributed import joined

RUNS: dict[str, type[AlignRun]] = {
    "dpo": DpoRun,
    "reward": RewardRun,
    "grpo": GrpoRun,
    "ppo": PpoRun,
}


def main(args: Align) -> bool:
    """Trains, or goes on training, and writes an adapter or a model in the end.

    Returns:
      whether all steps are done (False: stopped on request, state saved).

    Raises:
      UserError: one line that says what is wrong.
    """
    with joined(args):
        run = RUNS[args.method].make(args)
        with jax.set_mesh(run.mesh):
            return session.train(dataclasses.replace(run, args=within_time(run)))


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and trains."""
    argv = sys.argv[1:] if argv is None else argv
    main(cli.parse(DEFAULTS, "dpo", "python -m train.align", argv, option="--method"))


if __name__ == "__main__":
    cli.run(cli_main)
