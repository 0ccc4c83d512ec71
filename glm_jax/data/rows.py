"""Rows of the global batch: one process's share of them, and the place they have come to.

Each batch travels with the place of every row's stream behind it, so what is read ahead, by how
many workers or hosts, leaves no trace in the state: it is {row of the global batch: place}, and
the states of several processes are parts of one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from glm_jax.data.packing import Row, empty_row
from glm_jax.data.stream import RowRecipe, RowStream, Texts
from glm_jax.errors import UserError

Block = tuple[Row, tuple[str, ...]]
"""Stacked rows, and the place of each row's stream behind its row."""
START = ""
"""The place of a stream that has not begun."""


class StreamRows(grain.IterDataset):
    """Blocks of one row of each of several endless streams.

    Args:
      indices: which rows of the global batch.
      count: rows of the global batch.
      places: where each stream goes on; START where it begins.
    """

    def __init__(
        self,
        texts: Texts,
        recipe: RowRecipe,
        epoch_len: int,
        indices: Sequence[int],
        count: int,
        places: Mapping[int, str],
    ):
        super().__init__()
        self._texts, self._recipe, self._epoch_len = texts, recipe, epoch_len
        self._indices, self._count, self._places = indices, count, places

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Grain's way to give a worker process its share: every n-th stream."""
        del sequential_slice
        self._indices = self._indices[sl]

    def __iter__(self) -> grain.DatasetIterator:
        streams = []
        for index in self._indices:
            streams.append(
                RowStream(self._recipe, self._texts, self._epoch_len, index, self._count)
            )
            if self._places[index] != START:
                streams[-1].set_state(self._places[index])
        return _StreamRowsIterator(streams)


class _StreamRowsIterator(grain.DatasetIterator):
    def __init__(self, streams: list[RowStream]):
        super().__init__()
        self._streams = streams

    def __next__(self) -> Block:
        rows = [row for stream in self._streams if (row := stream.next_row()) is not None]
        if len(rows) < len(self._streams):
            raise StopIteration
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return batch, tuple(stream.get_state() for stream in self._streams)

    def get_state(self) -> dict:
        """Grain's worker processes note it; nothing goes back to it."""
        return {}

    def set_state(self, state: dict) -> None:
        raise NotImplementedError("a StreamRows begins at the places that it is made with")


def interleave(blocks: Sequence[Block]) -> Block:
    """A batch from one block of each worker: worker w of W has the rows w, w + W, w + 2W, ..."""
    batch = {
        name: np.stack([rows[name] for rows, _ in blocks], axis=1).reshape(-1, *first.shape[1:])
        for name, first in blocks[0][0].items()
    }
    return batch, tuple(place for at in zip(*(p for _, p in blocks), strict=True) for place in at)


class Batches(grain.DatasetIterator):
    """The batches of endless streams. Its state names rows of the global batch, not processes.

    Args:
      start: opens an iterator of blocks that goes on at these places.
      rows: the rows of the global batch that it yields.
    """

    def __init__(
        self, start: Callable[[Mapping[int, str]], grain.DatasetIterator], rows: Sequence[int]
    ):
        super().__init__()
        self._start, self._places = start, dict.fromkeys(rows, START)
        self._blocks: grain.DatasetIterator | None = None  # opened when the first is asked for

    def __next__(self) -> Row:
        if self._blocks is None:
            self._blocks = self._start(self._places)
        batch, places = next(self._blocks)
        self._places = dict(zip(self._places, places, strict=True))
        return batch

    def get_state(self) -> dict[str, Any]:
        """``{"rows": {"0": place, ...}}``, of this process's rows alone."""
        return {"rows": {str(row): place for row, place in self._places.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on at a state, which may hold more rows than these: those of all processes.

        Raises:
          UserError: a row is missing.
        """
        if missing := [row for row in self._places if str(row) not in state["rows"]]:
            raise UserError(
                f"the saved place of the data is of {len(state['rows'])} rows and has none of row "
                f"{missing[0]} of the global batch; resume with the same batch size"
            )
        self.close()
        self._places = {row: state["rows"][str(row)] for row in self._places}

    def close(self) -> None:
        """Ends threads and worker processes."""
        if self._blocks is not None:
            with contextlib.suppress(AttributeError):
                self._blocks.close()
            self._blocks = None


class FiniteRows(grain.IterDataset):
    """One process's share of the rows of a single stream that ends, in whole batches."""

    def __init__(
        self,
        texts: Texts,
        recipe: RowRecipe,
        epoch_len: int,
        rows: Sequence[int],
        batch_size: int,
    ):
        super().__init__()
        self._texts, self._recipe, self._epoch_len = texts, recipe, epoch_len
        self._share = frozenset(rows), batch_size

    def __iter__(self) -> grain.DatasetIterator:
        stream = RowStream(self._recipe, self._texts, self._epoch_len, 0, 1)
        return _FiniteRowsIterator(stream, self._recipe, *self._share)


class _FiniteRowsIterator(grain.DatasetIterator):
    def __init__(self, stream: RowStream, recipe: RowRecipe, rows: frozenset[int], batch_size: int):
        super().__init__()
        self._stream, self._row = stream, 0  # row of the whole sequence that comes next
        self._rows, self._batch_size = rows, batch_size
        self._empty = empty_row(recipe.seq_len, recipe.pad)

    def __next__(self) -> Row:
        while True:
            row = self._stream.next_row()
            place = self._row % self._batch_size
            if row is None and place == 0:
                raise StopIteration
            self._row += 1
            if place in self._rows:
                return {k: v.copy() for k, v in self._empty.items()} if row is None else row

    def get_state(self) -> dict:
        return {"row": self._row, "stream": self._stream.get_state()}

    def set_state(self, state: dict) -> None:
        self._row = state["row"]
        self._stream.set_state(state["stream"])
