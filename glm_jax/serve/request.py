"""What the engine is asked for, and what it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from glm_jax.errors import UserError
from glm_jax.text.layout import LaidOut
from glm_jax.text.sampling import RowSampling

Reason = Literal["stop", "length", "cancelled", "error"]


class Token(NamedTuple):
    """One chosen token; ``likely`` are (id, log probability), most likely first."""

    id: int
    logprob: float
    likely: tuple[tuple[int, float], ...] = ()


class News(NamedTuple):
    """Tokens that a request got since the last time, and why it ended if it did."""

    tokens: tuple[Token, ...]
    reason: Reason | None = None
    error: str = ""


@dataclasses.dataclass(eq=False)
class Request:
    """One row to be written. ``deliver`` is called from the engine's thread and must not block."""

    prompt: LaidOut
    limit: int
    """Most tokens to write; at least 1."""
    stops: tuple[int, ...]
    sampling: RowSampling
    """Of one row."""
    deliver: Callable[[News], None] = lambda news: None
    likely: int = 0
    """How many alternatives to report for every token."""
    count: int = 0
    """Tokens written so far; the engine's."""
    read: int = 0
    """Tokens of the prompt that are in the cache; the engine's."""
    slot: int | None = None
    ended: bool = False
    cancelled: bool = False
    began: float = 0.0
    """When it was queued, of ``time.monotonic``; the engine's."""

    @property
    def length(self) -> int:
        return len(self.prompt.tokens)

    @property
    def in_one_piece(self) -> bool:
        """Part A is read in both directions: its first tokens see its last, so that it cannot be
        read in pieces."""
        return self.prompt.sep > 0

    def padded_stops(self, width: int) -> np.ndarray:
        """[1, width], padded with -1.

        Raises:
          UserError: there are more.
        """
        if len(self.stops) > width:
            raise UserError(f"{len(self.stops)} stop ids are too many; at most {width}")
        return np.array([[*self.stops, *[-1] * (width - len(self.stops))]], np.int32)
