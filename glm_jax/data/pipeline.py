"""From a data configuration to an iterator of batches, the same on any number of hosts.

Each row of the global batch is one stream with its own share of the shuffled documents and its
own packer, so what row r of step n holds depends on nothing but the seed and r. A process works
on its rows only; worker processes divide those among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import grain
import numpy as np
from absl import flags

from glm_jax.data.config import DataConfig
from glm_jax.data.corpus import open_corpus
from glm_jax.data.objectives import INFILLING_PRESETS, OBJECTIVES, Infilling
from glm_jax.data.packing import Row, empty_row
from glm_jax.data.stream import MIN_SEQ_LEN, Recipe, RowRecipe, RowStream, Texts
from glm_jax.errors import UserError
from glm_jax.text.tokenizer import Tokenizer


def make_loader(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    split: Literal["train", "heldout"],
    batch_size: int,
    seq_len: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_epochs: int | None = None,
    objective: str | None = None,
) -> grain.DatasetIterator:
    """An iterator of batches, with Grain's ``get_state`` and ``set_state``.

    Args:
      batch_size: rows of the global batch; process p of P yields rows p*b to (p+1)*b - 1 of it,
        b = batch_size // P.
      seq_len: tokens per row.
      num_epochs: passes over the documents; None for no end. A loader with an end packs one
        stream on every process (so that all see the same number of batches) and fills its last
        batch up with empty rows; its rows do not depend on batch_size.
      objective: "mask", "smask" or "gmask" makes every example one of that kind.

    Returns:
      an iterator of dicts of arrays [b, ...] (see ``glm_jax.data``). Close it with ``close()`` when
      it has worker processes. Its state fits a loader with the same arguments.

    Raises:
      UserError: an argument or the source is bad.
    """
    check_arguments(batch_size, seq_len, seed, process_index, process_count, config)
    corpus = open_corpus(config, split)
    recipe = Recipe(
        tokenizer=tokenizer,
        infilling=_infilling(config.infilling, objective),
        seq_len=seq_len,
        seed=seed,
        isolate=config.isolate,
        open_rows=config.open_rows,
    )
    texts = grain.MapDataset.source(corpus)
    if split == "train":
        texts = texts.shuffle(seed)
    return batches_of(
        texts.repeat(num_epochs),
        recipe,
        len(corpus),
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        endless=num_epochs is None,
        num_workers=config.num_workers,
        prefetch=config.prefetch,
    )


def batches_of(
    texts: Texts,
    recipe: RowRecipe,
    epoch_len: int,
    *,
    batch_size: int,
    process_index: int,
    process_count: int,
    endless: bool,
    num_workers: int,
    prefetch: int,
) -> grain.DatasetIterator:
    """This process's batches of what a recipe makes of the texts; see ``make_loader``.

    Args:
      texts: records in order, repeated as often as is wanted.
      epoch_len: records of one pass.
      endless: the texts have no end: every row of a batch is a stream of its own.
    """
    local = batch_size // process_count
    first = local * process_index
    if not endless:
        rows = FiniteRows(texts, recipe, epoch_len, first, local, batch_size)
        return _prefetched(rows.batch(local), prefetch)
    blocks = StreamRows(texts, recipe, epoch_len, range(first, first + local), batch_size)
    workers = _worker_count(num_workers, local)
    if not workers:
        return _prefetched(blocks, prefetch)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags, which only absl programs parse
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch)
    return iter(blocks.mp_prefetch(options).batch(workers, batch_fn=_interleave))


def _prefetched(batches: grain.IterDataset, buffer: int) -> grain.DatasetIterator:
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=buffer))


def _interleave(blocks: Sequence[Row]) -> Row:
    """A batch from one block of each worker: worker w of W has the rows w, w + W, w + 2W, ..."""
    return {
        name: np.stack([block[name] for block in blocks], axis=1).reshape(-1, *first.shape[1:])
        for name, first in blocks[0].items()
    }


def _worker_count(wanted: int, rows: int) -> int:
    """The most workers, up to those wanted, among which the rows divide evenly."""
    return next((n for n in range(min(wanted, rows), 0, -1) if rows % n == 0), 0)


def _infilling(name: str, objective: str | None) -> Infilling:
    if name not in INFILLING_PRESETS:
        raise UserError(f"infilling {name!r} is not one of {', '.join(INFILLING_PRESETS)}")
    if objective is None:
        return INFILLING_PRESETS[name]
    if objective not in OBJECTIVES:
        raise UserError(f"objective {objective!r} is not one of {', '.join(OBJECTIVES)}")
    return INFILLING_PRESETS[name].only(objective)


class _Buffers(Protocol):
    """What the options of pretraining and of fine-tuning share."""

    @property
    def open_rows(self) -> int: ...
    @property
    def num_workers(self) -> int: ...
    @property
    def prefetch(self) -> int: ...


def check_arguments(
    batch_size: int,
    seq_len: int,
    seed: int,
    process_index: int,
    process_count: int,
    config: _Buffers,
) -> None:
    """Refuses arguments of a loader that fit nothing.

    Raises:
      UserError: one of them does.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch_size {batch_size} does not divide among {process_count} processes")
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index {process_index} is not below {process_count}")
    if seq_len < MIN_SEQ_LEN:
        raise UserError(f"seq_len {seq_len} is too short; at least {MIN_SEQ_LEN}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is not between 0 and 2^32 - 1")
    if config.num_workers < 0 or config.prefetch < 1 or config.open_rows < 1:
        raise UserError("num_workers must be 0 or more, prefetch and open_rows 1 or more")


class StreamRows(grain.IterDataset):
    """Blocks of rows of several endless streams: one row of each, stacked."""

    def __init__(
        self,
        texts: Texts,
        recipe: RowRecipe,
        epoch_len: int,
        indices: range,
        count: int,
    ):
        super().__init__()
        self._texts, self._recipe, self._epoch_len = texts, recipe, epoch_len
        self._indices, self._count = indices, count

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Grain's way to give a worker process its share: every n-th stream."""
        del sequential_slice
        self._indices = self._indices[sl]

    def __iter__(self) -> grain.DatasetIterator:
        streams = [
            RowStream(self._recipe, self._texts, self._epoch_len, index, self._count)
            for index in self._indices
        ]
        return _StreamRowsIterator(streams)


class _StreamRowsIterator(grain.DatasetIterator):
    def __init__(self, streams: list[RowStream]):
        super().__init__()
        self._streams = streams

    def __next__(self) -> Row:
        rows = [row for stream in self._streams if (row := stream.next_row()) is not None]
        if len(rows) < len(self._streams):
            raise StopIteration
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def get_state(self) -> dict:
        return {"streams": [stream.get_state() for stream in self._streams]}

    def set_state(self, state: dict) -> None:
        if len(state["streams"]) != len(self._streams):
            saved, here = len(state["streams"]), len(self._streams)
            raise UserError(f"the saved iterator has {saved} rows per process, this one {here}")
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.set_state(saved)


class FiniteRows(grain.IterDataset):
    """One process's share of the rows of a single stream that ends, in whole batches."""

    def __init__(
        self,
        texts: Texts,
        recipe: RowRecipe,
        epoch_len: int,
        first: int,
        local: int,
        batch_size: int,
    ):
        super().__init__()
        self._texts, self._recipe, self._epoch_len = texts, recipe, epoch_len
        self._share = first, local, batch_size

    def __iter__(self) -> grain.DatasetIterator:
        stream = RowStream(self._recipe, self._texts, self._epoch_len, 0, 1)
        return _FiniteRowsIterator(stream, self._recipe, *self._share)


class _FiniteRowsIterator(grain.DatasetIterator):
    def __init__(
        self, stream: RowStream, recipe: RowRecipe, first: int, local: int, batch_size: int
    ):
        super().__init__()
        self._stream, self._row = stream, 0  # row of the whole sequence that comes next
        self._first, self._local, self._batch_size = first, local, batch_size
        self._empty = empty_row(recipe.seq_len, recipe.pad)

    def __next__(self) -> Row:
        while True:
            row = self._stream.next_row()
            place = self._row % self._batch_size
            if row is None and place == 0:
                raise StopIteration
            self._row += 1
            if self._first <= place < self._first + self._local:
                return {k: v.copy() for k, v in self._empty.items()} if row is None else row

    def get_state(self) -> dict:
        return {"row": self._row, "stream": self._stream.get_state()}

    def set_state(self, state: dict) -> None:
        self._row = state["row"]
        self._stream.set_state(state["stream"])
