"""Who waits, who is being read and who is being written: slots by order of arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from glm_jax.serve.request import Request


class QueueFull(Exception):
    """More requests wait than the queue holds; ``seconds`` is a guess at when to come again."""

    def __init__(self, waiting: int, seconds: int):
        super().__init__(
            f"{waiting} requests are waiting and the queue is full; come again in {seconds} s"
        )
        self.seconds = seconds


class Schedule:
    """A queue in front of a fixed number of slots. Not thread-safe: the engine holds a lock."""

    def __init__(self, slots: int, most_waiting: int):
        self.most_waiting = most_waiting
        self.waiting: deque[Request] = deque()
        self.reading: list[Request] = []
        """Have a slot; their prompts are not read to the end. The first is read first."""
        self.writing: dict[int, Request] = {}
        """By slot."""
        self._free = list(range(slots))
        self._seconds = 1.0  # a request's usual time in a slot

    def add(self, requests: Sequence[Request]) -> None:
        """Queues all of them or none.

        Raises:
          QueueFull: there is no room for them.
        """
        # Those that a free slot takes at once do not wait.
        if len(self.waiting) + len(requests) > self.most_waiting + len(self._free):
            raise QueueFull(len(self.waiting), self.retry_after())
        self.waiting.extend(requests)

    def admit(self) -> None:
        """Gives free slots to those who wait longest."""
        while self._free and self.waiting:
            request = self.waiting.popleft()
            request.slot = self._free.pop(0)
            self.reading.append(request)

    def read_to_the_end(self, request: Request) -> None:
        self.reading.remove(request)
        assert request.slot is not None
        self.writing[request.slot] = request

    def remove(self, request: Request, seconds: float | None = None) -> None:
        """Takes it out, wherever it is; its slot is free from now on.

        Args:
          seconds: how long it took, if it was served to its end.
        """
        request.ended = True
        if seconds is not None:
            self._seconds += 0.1 * (seconds - self._seconds)
        if request.slot is None:
            if request in self.waiting:
                self.waiting.remove(request)
            return
        if self.writing.get(request.slot) is request:
            del self.writing[request.slot]
        else:
            self.reading.remove(request)
        self._free.append(request.slot)
        request.slot = None

    def everyone(self) -> list[Request]:
        return [*self.waiting, *self.reading, *self.writing.values()]

    def slots_in_use(self) -> int:
        return len(self.reading) + len(self.writing)

    def free_slots(self) -> int:
        return len(self._free)

    def retry_after(self) -> int:
        """Seconds until the queue has probably moved."""
        slots = self.slots_in_use() + len(self._free)
        return max(1, min(60, round(self._seconds * len(self.waiting) / slots)))
