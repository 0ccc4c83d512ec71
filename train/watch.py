"""Noticing that another process of the run is lost.

A collective operation waits for all processes, so one that dies or hangs would leave the others
waiting for ever. A thread of each process therefore posts a beat in the key-value store of JAX's
coordination service; process 0 compares the beats of all and posts a verdict, which ends every
process with the same line. JAX's own heartbeats are the second net, for the loss of process 0.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
from jax._src import distributed as jax_distributed  # the key-value store has no public name

from glm_jax.errors import first_line
from train.beats import Ledger, beat_text

_BEATS, _VERDICT = "glm_jax/beat/", "glm_jax/verdict/"  # as the store names directories
_BEAT_SECONDS = 1.0
_GRACE = 5.0  # seconds for the others to read a verdict before the process that serves it ends

_watch: Watch | None = None


def heartbeat_timeout(silent: int) -> int:
    """Seconds to give JAX's own heartbeats: they must not end a run before the verdict is read.

    They are sent every half of it: of a process that dies right before one is due, the loss is
    noticed after the other half.
    """
    return 2 * (silent + round(_GRACE + 3 * _BEAT_SECONDS))


@contextlib.contextmanager
def watching(silent: float, stalled: float) -> Iterator[None]:
    """Ends this process when another is not heard of for ``silent`` seconds, ends with an error, or
    when no step is finished for ``stalled`` seconds (0: any)."""
    global _watch
    _watch = Watch(silent, stalled)
    try:
        with telling():
            yield
        _watch.close()
    finally:
        _watch = None


def finished(step: int) -> None:
    """Tells the others that this process has the results of a step."""
    if _watch:
        _watch.step = step


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Tells the others of an error at once, before anything is closed that waits for them."""
    try:
        yield
    except BaseException as error:
        if _watch:
            _watch.failed(error)
        raise


class Watch:
    """The thread that posts this process's beats and ends it when another is lost."""

    def __init__(self, silent: float, stalled: float):
        self.step = -1
        self._silent, self._stalled = silent, stalled
        self._failure, self._failed_at = "", 0.0
        self._client = jax_distributed.global_state.client
        self._me, self._all = jax.process_index(), jax.process_count()
        self._ledger = Ledger(self._all, time.monotonic())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch of hosts", daemon=True)
        self._thread.start()

    def failed(self, error: BaseException) -> None:
        """Posts why this process ends, and sees to it that it does not wait for the others."""
        if self._failure or self._closed.is_set():
            return
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Often the echo of a lost process, which the verdict will name: wait for that first.
            time.sleep(self._silent + _GRACE)
        self._failed_at, self._failure = time.monotonic(), first_line(error) or repr(error)
        atexit.register(_leave, 2 * _BEAT_SECONDS)  # runs before JAX's own, which waits for all

    def close(self) -> None:
        """The run is over: this process may now be silent."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        count = 0
        while True:
            closed = self._closed.wait(_BEAT_SECONDS)
            count += 1
            try:
                self._post(count, closed)
                if closed:
                    return
                verdict = self._judge() if self._me == 0 else self._read_verdict()
            except jax.errors.JaxRuntimeError as error:
                verdict = f"process 0, the coordinator, does not answer: {first_line(error)}"
            if self._failure:
                if time.monotonic() - self._failed_at > 2 * _GRACE:
                    _end(self._failure)  # it hangs in something that waits for the others
            elif verdict:
                _end(verdict, linger=_GRACE if self._me == 0 else 0.0)

    def _post(self, count: int, closed: bool) -> None:
        state = "done" if closed else self._failure and f"error {self._failure}"
        name = f"{socket.gethostname()}, pid {os.getpid()}"
        beat = beat_text(count, self.step, name, state)
        self._client.key_value_set(f"{_BEATS}{self._me}", beat, allow_overwrite=True)

    def _judge(self) -> str:
        beats = {
            int(key.rpartition("/")[2]): value
            for key, value in self._client.key_value_dir_get(_BEATS)
        }
        verdict = self._ledger.verdict(beats, time.monotonic(), self._silent, self._stalled)
        if verdict:
            self._client.key_value_set(f"{_VERDICT}0", verdict, allow_overwrite=True)
        return verdict

    def _read_verdict(self) -> str:
        found = self._client.key_value_dir_get(_VERDICT)
        return found[0][1] if found else ""


def _end(why: str, linger: float = 0.0) -> None:
    again = "the run ends; started again it goes on from its last checkpoint"
    print(f"error: {why}; {again}", file=sys.stderr, flush=True)
    time.sleep(linger)
    os._exit(1)


def _leave(linger: float) -> None:
    time.sleep(linger)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
