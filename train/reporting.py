"""What a run says about itself: a progress bar or plain lines, a JSONL log, TensorBoard files."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tensorboardX import SummaryWriter

from train import goodput

Numbers = Mapping[str, float]
LOG_FILE = "log.jsonl"
PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


class Reporter:
    """Everything is silent on all processes but the first.

    Args:
      directory: gets ``log.jsonl`` and ``tensorboard/``.
      steps: where the run will end.
      start: the step it starts from; later lines of an interrupted run's log are dropped.
      tokens_per_step: slots of a batch, for the throughput.
      flops_per_token, peak_flops: for the utilisation, both over all devices; None leaves it out.
      log_every: steps between entries of both logs.
      began: when this start began, by ``time.monotonic``; None: now.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        steps: int,
        start: int = 0,
        tokens_per_step: int,
        flops_per_token: float,
        peak_flops: float | None = None,
        log_every: int = 1,
        active: bool = True,
        began: float | None = None,
    ):
        self._steps, self._start, self._log_every, self._active = steps, start, log_every, active
        self._tokens, self._flops, self._peak = tokens_per_step, flops_per_token, peak_flops
        self._shown: dict[str, float] = {}
        self._clock = _Clock(start)
        self._last_line = 0.0
        self._console = Console(stderr=False, highlight=False)
        self._bar: Progress | None = None
        self._ledger: goodput.Ledger | None = None
        if not active:
            return
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._ledger = goodput.Ledger(directory / goodput.FILE, start, began)
        self._log = _open_log(directory / LOG_FILE, start)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1)
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.completed}/{task.total}"),
                BarColumn(bar_width=16),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._bar.add_task("compiling", total=steps, completed=start)
            self._bar.start()

    def say(self, text: str) -> None:
        """A line for a person, above the progress bar."""
        if self._active:
            self._console.print(text, soft_wrap=True, markup=False)
            sys.stdout.flush()

    def step(self, step: int, metrics: Numbers) -> None:
        """The numbers of one step, fetched from the devices."""
        if not self._active:
            return
        rate = self._clock.tick(step) * self._tokens
        entry = {"step": step, **{k: v for k, v in metrics.items() if math.isfinite(v)}}
        if rate:
            entry["tokens_per_s"] = rate
            if self._peak:
                entry["mfu"] = rate * self._flops / self._peak
        self._shown |= entry
        if self._ledger and (step % self._log_every == 0 or step == self._steps):
            self._write("train", entry | self._ledger.numbers())
            self._ledger.store()
        self._show(step)

    def heldout(self, step: int, losses: Numbers) -> None:
        """Held-out losses per objective, or other numbers by name; those with a ``/`` in it are
        shares in percent."""
        if not self._active:
            return
        self._write("heldout", {"step": step, **losses})
        text = "  ".join(f"{name} {x:.4f}" for name, x in losses.items() if "/" not in name)
        others = (f"  {name} {x:.2f}" for name, x in losses.items() if "/" in name)
        what = "held-out" if losses.keys() & {"accuracy", "reward"} else "held-out loss"
        self.say(f"step {step}: {what}  {text}{''.join(others)}")

    @contextlib.contextmanager
    def paused(self, kind: goodput.Kind) -> Iterator[None]:
        """A context whose time does not count as training time but as this."""
        with self._clock, self._ledger.spending(kind) if self._ledger else contextlib.nullcontext():
            yield

    def turn(self, kind: goodput.Kind, *, was: goodput.Kind | None = None) -> None:
        """What time is spent on from now on (``goodput.Ledger.turn``)."""
        if self._ledger:
            self._ledger.turn(kind, was=was)

    def saved(self, step: int) -> None:
        """There is a checkpoint of this step."""
        if self._ledger:
            self._ledger.saved(step)
            self._ledger.store()

    def say_where_time_went(self) -> None:
        """A line with the shares of ``goodput.Ledger``."""
        if self._ledger:
            self.say(self._ledger.text())

    def close(self) -> None:
        if self._ledger:
            self._ledger.close()
            if self._bar:
                self._bar.stop()
            with contextlib.suppress(OSError):  # a full disk, which was reported before
                self._log.close()
                self._board.close()

    def _write(self, kind: str, entry: Mapping[str, Any]) -> None:
        self._log.write(json.dumps({"kind": kind, **entry}) + "\n")
        self._log.flush()
        for name, value in entry.items():
            if name != "step":
                self._board.add_scalar(f"{kind}/{name}", value, entry["step"])

    def _show(self, step: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=step, description=self._describe(step))
        elif time.monotonic() - self._last_line > PLAIN_EVERY or step == self._steps:
            self._last_line = time.monotonic()
            self.say(f"step {step}/{self._steps}  {self._describe(step)}")

    def _describe(self, step: int) -> str:
        shown = self._shown
        parts = [f"{name} {shown[name]:.3f}" for name in _LOSSES if name in shown]
        parts += [f"lr {shown['lr']:.2e}"] if "lr" in shown else []
        if "tokens_per_s" in shown:
            parts.append(f"{shown['tokens_per_s']:,.0f} tokens/s")
            left = (self._steps - step) * self._tokens / shown["tokens_per_s"]
            parts += [f"MFU {shown['mfu']:.1%}"] if "mfu" in shown else []
            parts.append(f"{_clock_text(left)} left")
        parts += [f"skipped {shown['skipped']:.0f}"] if shown.get("skipped") else []
        return "  ".join(parts)


_LOSSES = ("loss", "mask", "smask", "gmask", "accuracy", "reward")


class _Clock:
    """Steps per second over the last steps, held-out evaluation and checkpoints left out."""

    def __init__(self, start: int):
        self._marks: list[tuple[int, float]] = []
        self._lost = 0.0
        self._entered = 0.0

    def tick(self, step: int) -> float:
        """The present rate; 0 until there is one."""
        self._marks = [*self._marks[-20:], (step, time.monotonic() - self._lost)]
        (first, began), (_, now) = self._marks[0], self._marks[-1]
        return (step - first) / (now - began) if step > first and now > began else 0.0

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._lost += time.monotonic() - self._entered


def _open_log(path: Path, start: int):
    """The log, without what an interrupted run wrote behind the checkpoint it resumes from."""
    kept = []
    if path.exists() and start:
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= start:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # cut short when the run was killed
    path.write_text("".join(kept))
    return path.open("a")


def _clock_text(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
