"""Batches whose examples stand alone in their rows: their place in the data is one number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

Batch = dict[str, np.ndarray]
Make = Callable[[list[int]], Batch]
"""Indices of examples to their arrays, stacked."""


class IndexBatches:
    """Batches without end over examples in an order that is shuffled anew in every pass.

    Batch n holds the examples at places n B / R to (n + 1) B / R of the order, each R times.

    Args:
      count: examples.
      rows: which rows of the global batch of B to make, ascending.
      repeat: R.
    """

    def __init__(
        self,
        make: Make,
        count: int,
        *,
        batch_size: int,
        rows: Sequence[int],
        seed: int,
        repeat: int = 1,
    ):
        self._order: Any = grain.MapDataset.source(range(count)).shuffle(seed).repeat(None)
        self._make, self._size, self._rows, self._repeat = make, batch_size, rows, repeat
        self._batch = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        first = self._batch * self._size
        places = [(first + row) // self._repeat for row in self._rows]
        self._batch += 1
        found = {place: int(self._order[place]) for place in set(places)}
        return self._make([found[place] for place in places])

    def get_state(self) -> dict[str, Any]:
        """Nested dicts that are the same on every process."""
        return {"batch": self._batch}

    def set_state(self, state: dict[str, Any]) -> None:
        self._batch = state["batch"]

    def close(self) -> None:
        """There is nothing to end."""


def some_batches(make: Make, indices: Sequence[int], batch_size: int, rows: Sequence[int]):
    """The examples in whole batches, one after another. ``present`` [b] is 1 where a row holds one,
    and 0 in the last batch's rows that fill it up."""
    for first in range(0, len(indices), batch_size):
        places = np.array([first + row for row in rows])
        present = places < len(indices)
        batch = make([indices[place] for place in np.minimum(places, len(indices) - 1)])
        yield batch | {"present": present.astype(np.float32)}
