"""An XProf trace of a few steps: what every chip and the host did in them, to look at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

WARM = 10
"""Steps of this start before the first that is traced: compiled, and the data has caught up."""


class Trace:
    """Traces steps ``first`` to ``last``; fewer where the run ends before.

    Args:
      directory: gets ``plugins/profile/<time>/<host>.xplane.pb``, which XProf and TensorBoard read.
      start: the step that this start goes on from.
      steps: where the run will end.
      count: steps to trace; 0: none.
    """

    def __init__(self, directory: Path, *, start: int, steps: int, count: int):
        self.directory = directory
        self.first = max(start + 1, min(start + WARM + 1, steps - count + 1))
        self.last = min(self.first + count - 1, steps)
        self._running = False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around the start of each step; traced or not, it is marked by its number."""
        if step == self.first <= self.last:
            jax.profiler.start_trace(self.directory)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def after(self, step: int, results: Any) -> bool:
        """To be called with what the step returned; whether that was the last one traced."""
        if not self._running or step < self.last:
            return False
        jax.block_until_ready(results)
        self.close()
        return True

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
