"""From a data configuration to an iterator of batches, the same on any number of hosts.

Each row of the global batch is one stream with its own share of the shuffled documents and its
own packer, so what row r of step n holds depends on nothing but the seed and r. A process works
on its rows only, worker processes divide those among them, and the place that training has come
to is one place per row: it outlives a change of the number of either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import grain
from absl import flags

from glm_jax.data.config import DataConfig
from glm_jax.data.corpus import open_corpus
from glm_jax.data.objectives import INFILLING_PRESETS, OBJECTIVES, Infilling
from glm_jax.data.rows import Batches, FiniteRows, StreamRows, interleave
from glm_jax.data.stream import MIN_SEQ_LEN, Recipe, RowRecipe, Texts
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
    rows: Sequence[int] | None = None,
    num_epochs: int | None = None,
    objective: str | None = None,
) -> grain.DatasetIterator:
    """An iterator of batches, with Grain's ``get_state`` and ``set_state``.

    Args:
      batch_size: rows of the global batch.
      seq_len: tokens per row.
      rows: which rows of the global batch to yield, ascending, b of them; all by default. A process
        of several takes those of its devices (``glm_jax.sharding.local_rows``).
      num_epochs: passes over the documents; None for no end. A loader with an end packs one
        stream on every process (so that all see the same number of batches) and fills its last
        batch up with empty rows; its rows do not depend on batch_size.
      objective: "mask", "smask" or "gmask" makes every example one of that kind.

    Returns:
      an iterator of dicts of arrays [b, ...] (see ``glm_jax.data``). Close it with ``close()`` when
      it has worker processes. Its state is that of its rows and fits a loader with the same
      arguments, on any number of processes and workers, that is given those rows or fewer; the
      states of several loaders are put together by uniting their ``rows``.

    Raises:
      UserError: an argument or the source is bad.
    """
    rows = range(batch_size) if rows is None else rows
    check_arguments(batch_size, seq_len, seed, rows, config)
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
        rows=rows,
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
    rows: Sequence[int],
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
    if not endless:
        finite = FiniteRows(texts, recipe, epoch_len, rows, batch_size)
        return _prefetched(finite.batch(len(rows)), prefetch)
    workers = _worker_count(num_workers, len(rows))

    def start(places: Mapping[int, str]) -> grain.DatasetIterator:
        blocks = StreamRows(texts, recipe, epoch_len, rows, batch_size, places)
        if not workers:
            return _prefetched(blocks, prefetch)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags, which only absl programs parse
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch)
        return iter(blocks.mp_prefetch(options).batch(workers, batch_fn=interleave))

    return Batches(start, rows)


def _prefetched(batches: grain.IterDataset, buffer: int) -> grain.DatasetIterator:
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=buffer))


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
    rows: Sequence[int],
    config: _Buffers,
) -> None:
    """Refuses arguments of a loader that fit nothing.

    Raises:
      UserError: one of them does.
    """
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} is below 1")
    if not rows or list(rows) != sorted({*rows} & {*range(batch_size)}):
        raise UserError(f"rows {rows} are not ascending rows of a batch of {batch_size}")
    if seq_len < MIN_SEQ_LEN:
        raise UserError(f"seq_len {seq_len} is too short; at least {MIN_SEQ_LEN}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is not between 0 and 2^32 - 1")
    if config.num_workers < 0 or config.prefetch < 1 or config.open_rows < 1:
        raise UserError("num_workers must be 0 or more, prefetch and open_rows 1 or more")
