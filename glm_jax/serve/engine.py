"""Continuous batching: a thread that reads prompts in pieces and writes to all rows in between."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from glm_jax.errors import UserError, first_line
from glm_jax.nn import GLM, Compute
from glm_jax.serve.metrics import Metrics
from glm_jax.serve.request import News, Reason, Request
from glm_jax.serve.rows import Rows
from glm_jax.serve.schedule import Schedule
from glm_jax.text.score import mesh_of

log = logging.getLogger(__name__)


class Draining(Exception):
    """The server is about to stop and takes nothing new."""


class Engine:
    """Serves requests on one device (or mesh) from a thread of its own.

    Every turn it reads at most ``chunk`` tokens of prompts, then writes a few tokens to every row
    that is being answered: a long prompt delays the others by one piece at a time. Prompts that a
    model reads in both directions (GLM, ChatGLM-6B) are read whole.

    Args:
      slots: requests served at a time.
      length: tokens per slot, prompt and answer together.
      chunk: tokens of prompts to read between two steps of writing.
      most_waiting: requests that may wait for a slot.
      burst: seconds that one call to the device should take, several tokens per row if they fit;
        new requests wait for so long.
      compute: how to compute; the type of the weights by default.

    Raises:
      UserError: a size that is not positive.
    """

    def __init__(
        self,
        model: GLM,
        *,
        slots: int = 8,
        length: int = 2048,
        chunk: int = 256,
        most_waiting: int = 256,
        burst: float = 0.05,
        metrics: Metrics | None = None,
        compute: Compute | None = None,
    ):
        for name, value in (("slots", slots), ("length", length), ("chunk", chunk)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        self.metrics = metrics or Metrics()
        self.metrics.slots.set(slots)
        self.broken = ""
        """Why nothing can be served any more."""
        self._chunk, self._burst = chunk, burst
        self._rows = Rows(model, slots, length, chunk, compute)
        self._schedule = Schedule(slots, most_waiting)
        self._changed = threading.Condition()  # guards the schedule and the flags
        self._draining = self._stopping = False
        self._step_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="glm-engine", daemon=True)

    @property
    def length(self) -> int:
        """Tokens per request, prompt and answer together."""
        return self._rows.length

    @property
    def draining(self) -> bool:
        return self._draining

    def start(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Compiles everything that serving will need, then starts the thread."""
        with mesh_of(self._rows.model):
            self._rows.warm_up(progress)
        self._thread.start()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues all of them, or none; each one's ``deliver`` hears of it until it has a reason.

        Raises:
          QueueFull, Draining: it cannot be served now.
        """
        with self._changed:
            if self._draining or self.broken:
                raise Draining(self.broken or "the server is shutting down")
            self._schedule.add(requests)
            for request in requests:
                request.began = time.monotonic()
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """Its slot is free at the next step; nothing is delivered to it after that."""
        with self._changed:
            request.cancelled = True
            if request in self._schedule.waiting:
                self._end(request, "cancelled")
            self._changed.notify()

    def drain(self, seconds: float) -> bool:
        """Takes nothing new and ends when everyone is served; whether that was in time."""
        with self._changed:
            self._draining = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Ends now; who is being served gets an error."""
        with self._changed:
            self._draining = self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def load(self) -> dict[str, int]:
        """Rows that wait, slots in use and free."""
        with self._changed:
            schedule = self._schedule
            numbers = (len(schedule.waiting), schedule.slots_in_use(), schedule.free_slots())
        self.metrics.waiting.set(numbers[0])
        self.metrics.in_use.set(numbers[1])
        return dict(zip(("waiting", "slots_in_use", "slots_free"), numbers, strict=True))

    def _run(self) -> None:
        with mesh_of(self._rows.model):
            try:
                while self._wait():
                    try:
                        self._turn()
                    except Exception as error:
                        self._start_anew(error)
            except Exception as error:  # also the new start failed: there is no device to serve on
                log.exception("the engine cannot go on")
                self.broken = f"the server's device failed: {first_line(error)}"
            with self._changed:
                for request in self._schedule.everyone():
                    self._end(request, "error", self.broken or "the server is shutting down")

    def _wait(self) -> bool:
        """Until there is something to do; False when it is time to end."""
        with self._changed:
            while not (self._stopping or self._schedule.everyone()):
                if self._draining:
                    return False
                self._changed.wait()
            return not self._stopping

    def _turn(self) -> None:
        """One boundary between steps: who leaves, who joins, a bit of reading, a bit of writing."""
        with self._changed:
            for request in self._schedule.everyone():
                if request.cancelled:
                    self._end(request, "cancelled")
            self._schedule.admit()
            reading = list(self._schedule.reading)
        budget = self._chunk
        for request in reading:
            while budget > 0 and not request.ended and not request.count:
                budget -= self._read(request)
        self._write()

    def _read(self, request: Request) -> int:
        """Reads one piece; returns how many tokens the device had to read for it."""
        try:
            width, first = self._rows.read(request)
        except Exception as error:
            if self._rows.lost:
                raise
            log.exception("a prompt could not be read")
            with self._changed:
                self._end(request, "error", first_line(error))
            return 0
        if first is not None:
            self.metrics.read.inc(request.length)
            self.metrics.first_token.observe(time.monotonic() - request.began)
            with self._changed:
                self._schedule.read_to_the_end(request)
            self._news(request, [first])
        return width

    def _write(self) -> None:
        with self._changed:
            writing = dict(self._schedule.writing)
            reading, waiting = bool(self._schedule.reading), bool(self._schedule.waiting)
        if not writing:
            return
        fitting = self._burst / self._step_seconds if self._step_seconds else 1
        steps = 1 if reading else max(1, int(fitting))
        begin = time.monotonic()
        chosen, done = self._rows.write(writing, steps, until_free=waiting)
        each = (time.monotonic() - begin) / max(done, 1)
        self._step_seconds += (each - self._step_seconds) * (0.2 if self._step_seconds else 1)
        for slot, tokens in chosen.items():
            self._news(writing[slot], tokens)

    def _news(self, request: Request, tokens) -> None:
        """Passes tokens on; ends the request after its last."""
        request.count += len(tokens)
        self.metrics.written.inc(len(tokens))
        reason: Reason | None = None
        if tokens and tokens[-1].id in request.stops:
            reason = "stop"
        elif request.count >= request.limit:
            reason = "length"
        if request.cancelled:
            return
        if reason is None:
            self._deliver(request, News(tuple(tokens)))
            return
        with self._changed:
            self._end(request, reason, tokens=tokens)

    def _end(self, request: Request, reason: Reason, error: str = "", tokens=()) -> None:
        """Frees the slot, then tells; the lock is held."""
        if request.ended:
            return
        seconds = time.monotonic() - request.began
        served = reason in ("stop", "length")
        self._schedule.remove(request, seconds if served else None)
        self.metrics.ended.labels(reason).inc()
        if served:
            self.metrics.duration.observe(seconds)
        self._deliver(request, News(tuple(tokens), reason, error))

    def _deliver(self, request: Request, news: News) -> None:
        try:
            request.deliver(news)
        except Exception:  # whoever waited for it is gone; the others are not
            log.debug("a reply has no reader any more", exc_info=True)
            request.cancelled = True

    def _start_anew(self, error: Exception) -> None:
        """After a failure of the device: its memory is lost, and with it all that were served."""
        log.error("the device failed; serving goes on with empty slots", exc_info=error)
        self.metrics.failures.inc()
        with self._changed:
            for request in [*self._schedule.reading, *self._schedule.writing.values()]:
                self._end(request, "error", f"the device failed: {first_line(error)}")
        self._rows.clear()
