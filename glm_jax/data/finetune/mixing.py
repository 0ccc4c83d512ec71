"""General data mixed into the task's, record by record, the same share in every row stream."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import Any

from glm_jax.data.stream import Texts

_GOLDEN = Fraction(987, 1597)  # steps of it spread over a circle


class Mixed:
    """Records by position: of every 1/ratio records of a row stream, one is ``general``.

    Row stream r of R takes the positions r, r + R, r + 2R, ..., and gets the records that it would
    get of each data set alone. In record k it takes ``general`` where ``floor(k ratio + u)`` grows;
    u differs from stream to stream, so that a batch holds both.

    Args:
      task, general: records in order; general without end.
      ratio: share of general records.
      streams: R.
    """

    def __init__(self, task: Texts, general: Texts, ratio: float, streams: int):
        self._task, self._general, self._streams = task, general, streams
        self._ratio = Fraction(ratio).limit_denominator(10_000)

    def __len__(self) -> int:
        """Positions until every record of the task was given (one stream)."""
        count = len(self._task)
        if count == sys.maxsize:
            return count
        length = count
        while (given := length - self._before(length, 0)) < count:
            length += count - given
        return length

    def __getitem__(self, index: int, /) -> Any:
        k, stream = divmod(index, self._streams)
        before = self._before(k, stream)
        if self._before(k + 1, stream) > before:
            return self._general[before * self._streams + stream]
        return self._task[(k - before) * self._streams + stream]

    def _before(self, k: int, stream: int) -> int:
        """General records among the first k of a stream."""
        return math.floor(k * self._ratio + stream * _GOLDEN % 1)
