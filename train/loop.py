"""The loop around the step: data, numbers, evaluation, checkpoints, and orderly ends."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from glm_jax.ckpts import TrainCheckpoints
from glm_jax.errors import UserError
from train.goodput import Kind
from train.profiling import Trace
from train.reporting import Reporter
from train.trainer import Batch, StepFn, TrainState, put_batch
from train.watch import finished

MAX_SKIPPED_IN_A_ROW = 20


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How often things happen, in steps; 0 means never but at the end."""

    log: int = 10
    """Steps between entries of log.jsonl and TensorBoard."""
    heldout: int = 1000
    """Steps between held-out evaluations; there is one at the start and one at the end as well."""
    save: int = 1000
    """Steps between checkpoints; there is one at the end as well."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{name} is {value}; it must be 0 (never) or more")

    @staticmethod
    def due(step: int, every: int) -> bool:
        return every > 0 and step % every == 0


def fit(
    state: TrainState,
    step_fn: StepFn,
    data: Iterator[Batch],
    *,
    mesh: Mesh,
    steps: int,
    every: Intervals,
    report: Reporter,
    checkpoints: TrainCheckpoints | None = None,
    heldout: Callable[[Any], dict[str, float]] | None = None,
    trace: Trace | None = None,
) -> tuple[TrainState, bool]:
    """Trains from ``state.step`` to ``steps``.

    Returns:
      the state, and whether it got there; False means that the process was asked to stop
      (SIGTERM, Ctrl-C, or a scheduler's notice on a pod) and the state is saved.

    Raises:
      UserError: twenty steps in a row were not finite, or a checkpoint could not be written.
    """
    late = _Late(report, checkpoints)
    step = start = int(state.step)
    trace = trace or Trace(Path(), start=start, steps=steps, count=0)
    with _stop_requests() as stop:
        if heldout and step == 0:
            with report.paused("heldout"):
                report.heldout(0, heldout(state.model))
        while step < steps:
            report.turn("data")
            batch = put_batch(next(data), mesh)
            calling: Kind = "compile" if step == start else "steps"  # the first call compiles
            report.turn(calling, was="data" if late.idle() else "steps")
            step += 1
            with trace.step(step):
                state, metrics = step_fn(state, batch)
            report.turn("steps")
            _limit_in_flight(metrics, mesh)
            if trace.after(step, metrics):
                report.say(f"trace of steps {trace.first} to {step} below {trace.directory}")
            late.push(step, metrics)
            stopping = stop.requested or (checkpoints is not None and checkpoints.preempted(step))
            last = step == steps
            if heldout and not stopping and (last or every.due(step, every.heldout)):
                late.flush()
                with report.paused("heldout"):
                    report.heldout(step, heldout(state.model))
            if checkpoints and (stopping or last or every.due(step, every.save)):
                with report.paused("checkpoint"):
                    checkpoints.save(step, state, data, wait=stopping or last)
                report.saved(step)
            if stopping:
                late.flush()
                report.say(
                    f"asked to stop: saved at step {step}; the same command goes on from there"
                )
                return state, False
        late.flush()
    return state, True


class _Late:
    """Reads each step's numbers when the next step is already under way."""

    def __init__(self, report: Reporter, checkpoints: TrainCheckpoints | None):
        self._report, self._checkpoints = report, checkpoints
        self._pending: tuple[int, dict[str, Array]] | None = None

    def push(self, step: int, metrics: dict[str, Array]) -> None:
        self.flush()
        self._pending = step, metrics

    def idle(self) -> bool:
        """Whether the devices have done all that they were given."""
        _, metrics = self._pending or (0, {})
        return all(x.is_ready() for x in metrics.values() if isinstance(x, Array))

    def flush(self) -> None:
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        numbers = {name: float(x) for name, x in jax.device_get(metrics).items()}
        self._report.step(step, numbers)
        finished(step)
        if numbers["skipped_in_a_row"] >= MAX_SKIPPED_IN_A_ROW:
            raise UserError(self._why_stopped(step))

    def _why_stopped(self, step: int) -> str:
        saved = self._checkpoints.steps() if self._checkpoints else []
        last = f"the last checkpoint is of step {saved[-1]}" if saved else "there is no checkpoint"
        return (
            f"stopped at step {step}: loss or gradient was not finite in "
            f"{MAX_SKIPPED_IN_A_ROW} steps in a row; {last}; try a lower learning rate"
        )


def _limit_in_flight(metrics: dict[str, Array], mesh: Mesh) -> None:
    """XLA's CPU backend deadlocks when steps of several virtual devices queue up: their
    collectives wait for each other in too small a pool of threads."""
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(metrics)


class _Stop:
    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


@contextlib.contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """Turns SIGTERM and the first Ctrl-C into a request. On a pod JAX itself receives SIGTERM and
    agrees with the other hosts on the step (``TrainCheckpoints.preempted``)."""
    stop = _Stop()
    numbers = [signal.SIGINT] + ([signal.SIGTERM] if jax.process_count() == 1 else [])
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
