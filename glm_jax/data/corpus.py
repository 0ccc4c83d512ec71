"""A source by name as a random-access sequence of documents."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any, Literal, SupportsIndex

from glm_jax.data import builders
from glm_jax.data.config import DataConfig
from glm_jax.data.sources import tfds_name
from glm_jax.errors import UserError

_log = logging.getLogger(__name__)
Split = Literal["train", "heldout"]


class Corpus:
    """Documents of one split: ``len(corpus)``, ``corpus[i] -> str``; picklable, read lazily.

    A record that is not UTF-8 raises UserError, or gives "" when bad records are to be skipped.
    """

    def __init__(self, records: Any, text_field: str, on_bad: str, label: str):
        self._records, self._field, self._on_bad, self.label = records, text_field, on_bad, label
        self.bad_records = 0

    def __getstate__(self):
        records = pickle.dumps(self._records)  # apart, since TFDS talks when it is unpickled
        return records, self._field, self._on_bad, self.label

    def __setstate__(self, state):
        with builders.quiet():
            self.__init__(pickle.loads(state[0]), *state[1:])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> str:
        index = index.__index__()
        raw = self._records[index][self._field]
        try:
            return raw.decode("utf-8") if isinstance(raw, bytes) else str(raw)
        except UnicodeDecodeError as error:
            if self._on_bad == "raise":
                where = f"{self.label}, record {index}"
                raise UserError(f"{where}: invalid UTF-8 (--data.on-bad skip leaves it out)") from (
                    error
                )
            self.bad_records += 1
            _log.warning("skipped: %s, record %d: invalid UTF-8", self.label, index)
            return ""

    def __repr__(self) -> str:
        return f"Corpus({self.label}, {len(self)} documents)"


def open_corpus(config: DataConfig, split: Split) -> Corpus:
    """Prepares the source if need be, and opens one split.

    Raises:
      UserError: the source is unknown or bad, or the split holds no document.
    """
    if not 0 < config.heldout_percent < 100:
        raise UserError(f"heldout_percent {config.heldout_percent:g} is not between 0 and 100")
    kind, _, rest = config.source.partition(":")
    cache = Path(config.cache_dir).expanduser() / "datasets"
    if config.source == "python_docs":
        builder = builders.python_docs_builder(cache, config.heldout_percent)
    elif kind == "files" and rest:
        builder = builders.files_builder(
            rest, config.text_field, config.on_bad, cache, config.heldout_percent
        )
    elif kind == "tfds" and rest:
        return _open_tfds(config, rest, split)
    else:
        raise UserError(f"source {config.source!r} is not python_docs, files:GLOB or tfds:NAME")
    splits = builders.prepare(builder).info.splits
    if split not in splits:
        held = f"{config.heldout_percent:g} % of {sum(s.num_examples for s in splits.values())}"
        raise UserError(f"{config.source}: no document falls into {split!r} (held out: {held})")
    return Corpus(builder.as_data_source(split=split), "text", "raise", config.source)


def _open_tfds(config: DataConfig, name: str, split: Split) -> Corpus:
    with builders.quiet():
        builder = tfds_name.builder(name, None)
    tfds_name.check_field(builder, config.text_field)
    try:
        builders.prepare(builder)
        wanted = tfds_name.split_name(list(builder.info.splits), split, config.heldout_percent)
        records = builder.as_data_source(split=wanted)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{config.source}: {' '.join(str(error).split())[:300]}") from error
    if not len(records):
        raise UserError(f"{config.source}: the split {wanted!r} holds no document")
    return Corpus(records, config.text_field, config.on_bad, f"{config.source} {wanted}")
