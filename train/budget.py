"""Fitting a run into a time limit on the machine at hand."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.files import write_whole
from train.session import Job
from train.trainer import put_batch


def within_time(job: Job) -> Any:
    """The options, with fewer steps where ``max_minutes`` asks for it; kept for resuming.

    Deciding once, before the first step, keeps the schedule whole: it ends where training ends.
    """
    args = job.args
    path = Path(args.output) / "plan.json"
    if not args.max_minutes:
        return args
    if path.exists():
        steps = int(json.loads(path.read_text())["steps"])
    else:
        seconds = seconds_per_step(job)
        steps = max(1, min(args.steps, int(60 * args.max_minutes / seconds)))
        steps = int(multihost_utils.broadcast_one_to_all(np.int32(steps)))
        write_whole(path, json.dumps({"steps": steps, "seconds_per_step": seconds}) + "\n")
    if steps == args.steps:
        return args
    schedule = args.optimizer.schedule
    decay = max(1, round(schedule.decay_steps * steps / args.steps))
    schedule = dataclasses.replace(schedule, decay_steps=decay)
    optimizer = dataclasses.replace(args.optimizer, schedule=schedule)
    if jax.process_index() == 0:
        limit = f"{args.max_minutes:g} minutes"
        print(f"{steps} steps instead of {args.steps}: more would take over {limit}", flush=True)
    return dataclasses.replace(args, steps=steps, optimizer=optimizer)


def seconds_per_step(job: Job, trials: int = 6) -> float:
    """Of a few steps on a state that is thrown away, compilation left out."""
    state, step = job.fresh(), job.step()
    batches = job.train_batches()
    times = []
    for _ in range(trials):
        began = time.monotonic()
        state, metrics = step(state, put_batch(next(batches), job.mesh))
        jax.block_until_ready(metrics)
        times.append(time.monotonic() - began)
    batches.close()
    return sorted(times[1:])[len(times[1:]) // 2]
