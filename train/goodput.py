"""Where the hours of a run went, over all its starts: the useful share is its goodput."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import jax

from train.files import write_whole

Kind = Literal["steps", "data", "compile", "checkpoint", "heldout", "start", "lost"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FILE = "goodput.json"
_COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_SAVES_KEPT = 32  # far more than checkpoints are


class Ledger:
    """Seconds by kind. Every moment since the run first began belongs to one:

    - steps: the devices train, or the host waits for them;
    - data: the host waited for rows and the devices had nothing left to do;
    - compile: tracing the step and compiling anything;
    - checkpoint: saving, as far as it holds up training;
    - heldout: evaluation;
    - start: reading data and a checkpoint before the first step;
    - lost: what was done after the checkpoint that a start goes on from, and the time from the last
      sign of life to that start.

    Args:
      path: keeps it over restarts; one that cannot be read is begun anew.
      start: the step that this start goes on from.
      began: when, by ``time.monotonic``; None: now.
    """

    def __init__(self, path: Path, start: int, began: float | None = None):
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._path, self._saves = path, {}
        self._kind: Kind = "start"
        self._since, self._compiled = time.monotonic() if began is None else began, 0.0
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            self._carry_over(json.loads(path.read_text()), start)
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _carry_over(self, before: dict, start: int) -> None:
        seconds, saves = before["seconds"], before["saves"]
        nothing = dict.fromkeys(KINDS, 0.0) | {"lost": seconds["lost"]}
        # A checkpoint that is not on record is older than the record: nothing is known to be lost.
        kept = saves.get(str(start), seconds if start else nothing)
        gone = sum(seconds[k] for k in KINDS) - sum(kept[k] for k in KINDS)
        gone += max(0.0, time.time() - before["at"])
        saves = {step: x for step, x in saves.items() if int(step) <= start}
        # From here on nothing can fail: a record is taken as a whole or not at all.
        self.seconds = {kind: float(kept[kind]) + gone * (kind == "lost") for kind in KINDS}
        self._saves = saves

    def turn(self, kind: Kind, *, was: Kind | None = None) -> Kind:
        """From now on time is of this kind; returns what it was before.

        Args:
          was: what the time so far turned out to be of.
        """
        now = time.monotonic()
        passed = now - self._since
        compiled = min(passed, self._compiled)
        self.seconds[was or self._kind] += passed - compiled
        self.seconds["compile"] += compiled
        before, self._kind, self._since, self._compiled = self._kind, kind, now, 0.0
        return before

    @contextlib.contextmanager
    def spending(self, kind: Kind) -> Iterator[None]:
        """A stretch of this kind inside another."""
        before = self.turn(kind)
        try:
            yield
        finally:
            self.turn(before)

    def saved(self, step: int) -> None:
        """There is a checkpoint of this step: what was done so far is not lost any more."""
        self.turn(self._kind)
        self._saves[str(step)] = dict(self.seconds)
        self._saves = dict(list(self._saves.items())[-_SAVES_KEPT:])

    def numbers(self) -> dict[str, float]:
        """``seconds_steps`` and so on, and ``goodput``, the share of steps."""
        self.turn(self._kind)
        total = sum(self.seconds.values())
        shown = {f"seconds_{kind}": round(x, 3) for kind, x in self.seconds.items()}
        return shown | {"goodput": self.seconds["steps"] / total if total else 0.0}

    def text(self) -> str:
        """One line for a person: every kind that took time, the largest first."""
        self.turn(self._kind)
        total = sum(self.seconds.values()) or 1.0
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        shown = (f"{_NAMES[kind]} {x / total:.1%}" for kind, x in parts if x / total >= 0.0005)
        return "time went into  " + "  ".join(shown)

    def store(self) -> None:
        """Writes it where the next start looks; a disk that is full is for others to report."""
        self.turn(self._kind)
        record = {"at": time.time(), "seconds": self.seconds, "saves": self._saves}
        with contextlib.suppress(OSError):
            write_whole(self._path, json.dumps(record))

    def close(self) -> None:
        """Stores it, and listens no more."""
        jax.monitoring.unregister_event_duration_listener(self._on_event)
        self.store()

    def _on_event(self, event: str, duration: float, **_: object) -> None:
        self._compiled += duration * (event in _COMPILING)


_NAMES: dict[str, str] = {
    "heldout": "held-out evaluation",
    "checkpoint": "checkpoints",
    "lost": "lost to restarts",
} | {kind: kind for kind in ("steps", "data", "compile", "start")}
