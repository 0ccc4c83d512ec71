"""What the beats of a run's processes say: who is lost, who failed, who is behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

_SHOWN = 4  # processes that a message names; of the others it gives the number


def beat_text(count: int, step: int, name: str, state: str) -> str:
    """A beat as it is posted.

    Args:
      count: differs from the beat before.
      step: the last one finished; -1 before the first.
      name: of the host, for a person.
      state: "", "done" or "error" and why.
    """
    return f"{count}|{step}|{name}|{state}"


@dataclasses.dataclass(frozen=True)
class _Beat:
    count: int
    step: int
    name: str
    state: str

    @classmethod
    def parse(cls, text: str) -> _Beat:
        count, step, name, state = text.split("|", 3)
        return cls(int(count), int(step), name, state)


class Ledger:
    """The last beat of each process and when it was heard, in seconds of the caller's clock."""

    def __init__(self, processes: int, now: float):
        self._beats = dict.fromkeys(range(processes), beat_text(0, -1, "it never reported", ""))
        self._heard = dict.fromkeys(range(processes), now)
        self._step, self._moved = -1, now

    def verdict(self, beats: Mapping[int, str], now: float, silent: float, stalled: float) -> str:
        """One line that says who is lost, or an empty one.

        Args:
          beats: the last of each process (``beat_text``).
          silent, stalled: seconds allowed without a beat, and without a step (0: any).
        """
        for process, beat in beats.items():
            if beat != self._beats[process]:
                self._beats[process], self._heard[process] = beat, now
        beats_now = {p: _Beat.parse(beat) for p, beat in self._beats.items()}
        for process, beat in beats_now.items():
            if beat.state.startswith("error"):
                return f"{self._name(process, beat)} ended: {beat.state.removeprefix('error ')}"
        going = {p: b for p, b in beats_now.items() if b.state != "done"}
        lost = [p for p in going if now - self._heard[p] > silent]
        if lost:
            names = "; ".join(
                f"{self._name(p, going[p])}, {_after(going[p].step)}" for p in lost[:_SHOWN]
            )
            return f"not heard of for {silent:g} s: {names}{_more(lost)}"
        return self._stalled(going, now, stalled)

    def _stalled(self, going: Mapping[int, _Beat], now: float, stalled: float) -> str:
        least = min((b.step for b in going.values()), default=self._step)
        if least > self._step or len(going) < len(self._beats):
            self._step, self._moved = least, now
        if not stalled or now - self._moved <= stalled:
            return ""
        behind = [p for p, b in going.items() if b.step == least]
        names = "; ".join(self._name(p, going[p]) for p in behind[:_SHOWN])
        if len(behind) == len(going):
            names = f"all {len(behind)} processes report"
        return f"no step finished for {stalled:g} s: {names}{_more(behind)}, {_after(least)}"

    def _name(self, process: int, beat: _Beat) -> str:
        return f"process {process} of {len(self._beats)} ({beat.name})"


def _after(step: int) -> str:
    return f"last seen after step {step}" if step >= 0 else "before its first step"


def _more(processes: Sequence[int]) -> str:
    return f" and {len(processes) - _SHOWN} more" if len(processes) > _SHOWN else ""
