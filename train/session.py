"""A run from its first step or its last checkpoint to its end: the same for all that is trained."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
from etils import epath
from jax.sharding import Mesh

from glm_jax.ckpts import TrainCheckpoints
from glm_jax.config import GLMConfig
from glm_jax.errors import UserError
from train.devices import peak_flops
from train.loop import fit
from train.options import Training
from train.profiling import Trace
from train.reporting import Reporter
from train.trainer import StepFn, TrainState
from train.watch import telling


class Job(Protocol):
    """What is trained, on what, and what is left of it."""

    @property
    def args(self) -> Training: ...

    @property
    def config(self) -> GLMConfig: ...

    @property
    def mesh(self) -> Mesh: ...

    def title(self) -> str:
        """A few words for the first line of the output."""
        ...

    def flops_per_token(self) -> int:
        """Model FLOPs of a step, which utilisation is counted against."""
        ...

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint to continue it exactly."""
        ...

    def train_batches(self) -> Any:
        """The endless stream that is trained on, with its ``get_state`` and ``set_state``."""
        ...

    def abstract(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        ...

    def fresh(self) -> TrainState:
        """The state before the first step."""
        ...

    def step(self) -> StepFn: ...

    def heldout(self) -> Callable[[Any], dict[str, float]] | None: ...

    def export(self, model: Any, place: epath.Path) -> str:
        """Writes what was trained; returns a line that says where it is."""
        ...


def train(job: Job) -> bool:
    """Trains, or goes on training, and exports in the end. Runs under the job's mesh.

    Returns:
      whether all steps are done (False: stopped on request, state saved).

    Raises:
      UserError: one line that says what is wrong.
    """
    began = time.monotonic()
    args, place = job.args, epath.Path(job.args.shared or job.args.output)
    checkpoints = TrainCheckpoints(place / "checkpoints", job.identity(), keep=args.keep)
    data = job.train_batches()
    warn = lambda text: print(f"warning: {text}", file=sys.stderr, flush=True)
    state = checkpoints.restore_latest(job.abstract(), data, warn)
    resumed = state is not None
    if state is None:
        state = job.fresh()
    start = int(state.step)
    report = _reporter(job, start, began)
    trace = Trace(
        Path(args.output) / "profile", start=start, steps=args.steps, count=args.profile_steps
    )
    try:
        with telling():
            report.say(_headline(job, start if resumed else None))
            state, done = fit(
                state,
                job.step(),
                data,
                mesh=job.mesh,
                steps=args.steps,
                every=args.every,
                report=report,
                checkpoints=checkpoints,
                heldout=job.heldout(),
                trace=trace,
            )
            report.say_where_time_went()
            if done:
                report.turn("checkpoint")
                report.say(job.export(state.model, place))
    finally:
        trace.close()
        report.close()
        data.close()
        checkpoints.close()
    return done


def check_shapes(args: Training, config: GLMConfig, mesh: Mesh) -> None:
    """Raises UserError: rows or their tokens do not divide over the mesh, or are longer than
    learned positions."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    micro = args.batch_size // args.accumulate
    if micro % ways:
        raise UserError(
            f"--batch-size {args.batch_size} / --accumulate {args.accumulate} = {micro} rows do not"
            f" divide over data x fsdp = {ways} devices"
        )
    shards = mesh.shape["context"]
    if shards > 1 and args.seq_len % (2 * shards):
        raise UserError(
            f"--seq-len {args.seq_len} cannot be cut over --mesh.context {shards}: it must be a "
            f"multiple of {2 * shards}"
        )
    if config.position == "learned" and args.seq_len > config.max_seq_len:
        raise UserError(
            f"--seq-len {args.seq_len} is longer than the model's {config.max_seq_len} positions; "
            "see --model.max-seq-len"
        )


def _reporter(job: Job, start: int, began: float) -> Reporter:
    args, peak = job.args, peak_flops()
    return Reporter(
        args.output,
        steps=args.steps,
        start=start,
        tokens_per_step=args.batch_size * args.seq_len,
        flops_per_token=job.flops_per_token(),
        peak_flops=peak and peak * job.mesh.size,
        log_every=args.every.log,
        active=jax.process_index() == 0,
        began=began,
    )


def _headline(job: Job, resumed: int | None) -> str:
    args = job.args
    axes = " x ".join(f"{name}={size}" for name, size in job.mesh.shape.items() if size > 1)
    start = "" if resumed is None else f"; resuming at step {resumed}"
    return (
        f"{job.title()}, {job.mesh.size} x {job.mesh.devices.flat[0].device_kind} {axes}".rstrip()
        + f", {args.batch_size} x {args.seq_len} tokens a step, {args.steps} steps{start}"
    )
