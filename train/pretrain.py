"""Blank-infilling pretraining: ``python -m train.pretrain --help``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import jax
from etils import epath

from glm_jax.ckpts import TrainCheckpoints, save_model
from glm_jax.config import flops_per_token, num_params
from glm_jax.nn import GLM
from train import cli
from train.budget import within_time
from train.devices import peak_flops
from train.loop import fit
from train.options import Pretrain
from train.presets import PRESETS
from train.reporting import Reporter
from train.run import Run
from train.trainer import abstract_state, sharded_init


def main(args: Pretrain) -> bool:
    """Trains, or goes on training, and writes ``output/model`` in the end.

    Returns:
      whether all steps are done (False: stopped on request, state saved).

    Raises:
      UserError: one line that says what is wrong.
    """
    if args.distributed:
        jax.distributed.initialize()
    run = Run.make(args)
    with jax.set_mesh(run.mesh):
        run = dataclasses.replace(run, args=within_time(run))
        return _train(run)


def _train(run: Run) -> bool:
    args, place = run.args, epath.Path(run.args.shared or run.args.output)
    checkpoints = TrainCheckpoints(place / "checkpoints", run.identity(), keep=args.keep)
    data = run.train_batches()
    warn = lambda text: print(f"warning: {text}", file=sys.stderr, flush=True)
    state = checkpoints.restore_latest(abstract_state(run.init, run.mesh), data, warn)
    resumed = state is not None
    if state is None:
        state = sharded_init(run.init, jax.random.key(args.seed), run.mesh)
    report = _reporter(run, int(state.step))
    try:
        report.say(_headline(run, int(state.step) if resumed else None))
        state, done = fit(
            state,
            run.step(),
            data,
            mesh=run.mesh,
            steps=args.steps,
            every=args.every,
            report=report,
            checkpoints=checkpoints,
            heldout=run.heldout(),
        )
        if done:
            _export(run, state.model, place / "model")
            report.say(f"model in {place / 'model'}")
    finally:
        report.close()
        data.close()
        checkpoints.close()
    return done


def _export(run: Run, model: GLM, directory: epath.Path) -> None:
    save_model(directory, model, run.config, tokenizer_dir=run.tokenizer_dir, overwrite=True)


def _reporter(run: Run, start: int) -> Reporter:
    args, peak = run.args, peak_flops()
    return Reporter(
        args.output,
        steps=args.steps,
        start=start,
        tokens_per_step=args.batch_size * args.seq_len,
        flops_per_token=flops_per_token(run.config, args.seq_len),
        peak_flops=peak and peak * run.mesh.size,
        log_every=args.every.log,
        active=jax.process_index() == 0,
    )


def _headline(run: Run, resumed: int | None) -> str:
    args = run.args
    axes = " x ".join(f"{name}={size}" for name, size in run.mesh.shape.items() if size > 1)
    start = "" if resumed is None else f"; resuming at step {resumed}"
    return (
        f"{args.preset}: {num_params(run.config) / 1e6:.1f}M parameters, "
        f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind} {axes or ''}".rstrip()
        + f", {args.batch_size} x {args.seq_len} tokens a step, {args.steps} steps{start}"
    )


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and trains."""
    argv = sys.argv[1:] if argv is None else argv
    main(cli.parse(PRESETS, "demo", "python -m train.pretrain", argv))


if __name__ == "__main__":
    cli.run(cli_main)
