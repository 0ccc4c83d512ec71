"""From fine-tuning options to an iterator of batches, the same on any number of hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import grain

from glm_jax.chat import chat_format as find_format
from glm_jax.config import GLMConfig
from glm_jax.data.finetune.forms import Content, Conversation, Reader
from glm_jax.data.finetune.mixing import Mixed
from glm_jax.data.finetune.options import FinetuneData
from glm_jax.data.finetune.recipe import FinetuneRecipe
from glm_jax.data.finetune.records import Read, Records
from glm_jax.data.pipeline import batches_of, check_arguments
from glm_jax.errors import UserError
from glm_jax.text.tokenizer import Tokenizer

Split = Literal["train", "heldout", "general"]
PARTS = ("task", "general")
TASK, GENERAL = range(2)


def make_finetune_loader(
    options: FinetuneData,
    tokenizer: Tokenizer,
    config: GLMConfig,
    chat_format: str,
    *,
    split: Split,
    batch_size: int,
    seq_len: int,
    seed: int,
    rows: Sequence[int] | None = None,
    num_epochs: int | None = None,
) -> grain.DatasetIterator:
    """An iterator of batches, with Grain's ``get_state`` and ``set_state``.

    Batches are those of ``glm_jax.data``; ``objective`` is an index into ``PARTS`` here, which
    tells an example of the task from one of the replayed general data.

    Args:
      config: the model's: it says how positions run and what sees what.
      chat_format: as for ``glm_jax.chat.render``; "" for a model without one, which can learn from
        pairs and texts.
      split: "train" (with the replay mixed in), "heldout", or "general": the held-out part of the
        replay.
      batch_size, seq_len, rows, num_epochs: as for
        ``glm_jax.data.make_loader``. An epoch is one of the task's data.

    Raises:
      UserError: an argument, a file or an example is bad; one line that names it.
    """
    rows = range(batch_size) if rows is None else rows
    check_arguments(batch_size, seq_len, seed, rows, options)
    _check_lengths(options, seq_len)
    recipe = FinetuneRecipe(tokenizer, config, _format(chat_format), options, seq_len, seed)
    task = open_records(options, split, chat_format)
    texts = grain.MapDataset.source(task)
    if split == "train":
        texts = texts.shuffle(seed)
    texts = texts.repeat(num_epochs)
    if split == "train" and options.replay:
        general = grain.MapDataset.source(_general(options, chat_format)[0])
        general = general.shuffle((seed + 1) % 2**32).repeat(None)
        streams = batch_size if num_epochs is None else 1
        texts = Mixed(texts, general, options.replay_ratio, streams)
    return batches_of(
        texts,
        recipe,
        len(task),
        batch_size=batch_size,
        rows=rows,
        endless=num_epochs is None,
        num_workers=options.num_workers,
        prefetch=options.prefetch,
    )


def open_records(options: FinetuneData, split: Split, chat_format: str = "") -> Records:
    """The examples of one split.

    Raises:
      UserError: a file or an example is bad, or there is nothing to hold out.
    """
    if split == "general":
        return _general(options, chat_format)[1]
    return open_split(
        options, split, Reader.of(options), part=TASK, check=_format_check(chat_format)
    )


class Splits(Protocol):
    """What options say about files and what is held out of them."""

    @property
    def files(self) -> tuple[str, ...]: ...
    @property
    def heldout(self) -> str: ...
    @property
    def heldout_percent(self) -> float: ...
    @property
    def on_bad(self) -> Literal["raise", "skip"]: ...


def open_split(
    options: Splits,
    split: Split,
    read: Read,
    *,
    part: int = 0,
    check: Callable[[Any], None] | None = None,
) -> Records:
    """What is trained on, or what is held out of it; other arguments as for ``Records``.

    Raises:
      UserError: a file or an example is bad, or there is nothing to hold out.
    """
    if not options.files:
        raise UserError("files is empty; it names the data to fine-tune on")
    opened = lambda patterns: Records(
        patterns, read, skip_bad=options.on_bad == "skip", part=part, check=check
    )
    own = bool(options.heldout)
    if own and split == "heldout":
        return opened((options.heldout,))
    task = opened(options.files)
    if split == "train" and (own or not options.heldout_percent):
        return task
    _check_share(options, "there is nothing to evaluate on")
    return task.split(options.heldout_percent)[split == "heldout"]


def _general(options: FinetuneData, chat_format: str) -> tuple[Records, Records]:
    if not options.replay:
        raise UserError("replay is empty: there is no general data to evaluate on")
    _check_share(options, "there is no general data to evaluate on")
    records = Records(
        options.replay,
        Reader(options.replay_form),
        skip_bad=options.on_bad == "skip",
        part=GENERAL,
        check=_format_check(chat_format),
    )
    return records.split(options.heldout_percent)


def _format_check(chat_format: str) -> Callable[[Content], None]:
    def check(content: Content) -> None:
        if not chat_format and isinstance(content, Conversation):
            raise UserError("a conversation, and this model has no chat format")

    return check


def _check_share(options: Splits, what: str) -> None:
    if not options.heldout_percent:
        raise UserError(f"heldout_percent is 0: {what}")


def _check_lengths(options: FinetuneData, seq_len: int) -> None:
    wanted = options.max_source_length + options.max_target_length
    if wanted > seq_len:
        raise UserError(
            f"max_source_length {options.max_source_length} + max_target_length "
            f"{options.max_target_length} do not fit rows of {seq_len} (seq_len)"
        )


def _format(name: str) -> str:
    return find_format(name).name if name else ""
