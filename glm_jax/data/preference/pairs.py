"""Pairs of answers of users' files, those that fit, by index."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glm_jax.config import GLMConfig
from glm_jax.data.finetune.loader import Split, open_split
from glm_jax.data.preference.forms import Preference, PreferenceReader
from glm_jax.data.preference.lengths import balanced_pairs, fitting
from glm_jax.data.preference.options import PreferenceData
from glm_jax.data.preference.rows import Answer, answer_rows, answer_to
from glm_jax.errors import UserError
from glm_jax.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class Pair(NamedTuple):
    """Two answers to one prompt."""

    chosen: Answer
    rejected: Answer


class Pairs:
    """``len(pairs)``, ``pairs[i] -> Pair``, ``pairs.rows([i, j]) -> batch``.

    Raises:
      UserError: no such file, a line is bad, or nothing fits; the message names file and line.
    """

    def __init__(
        self,
        options: PreferenceData,
        tokenizer: Tokenizer,
        config: GLMConfig,
        chat_format: str,
        *,
        split: Split,
        seq_len: int,
    ):
        self._tokenizer, self._config, self._format = tokenizer, config, chat_format
        self._seq_len = seq_len
        records = open_split(options, split, PreferenceReader(options))
        lengths = np.zeros((len(records), 2), np.int64)
        for i in range(len(records)):
            lengths[i] = [len(answer) for answer in self._pair(records[i])]
        kept = fitting(records, lengths.max(axis=1), seq_len, options.too_long)
        if options.debias_length and split == "train":
            kept = kept[balanced_pairs(lengths[kept, 0] - lengths[kept, 1])]
            _log.info("%d of %d pairs are left without length bias", len(kept), len(records))
            if not len(kept):
                raise UserError(
                    f"{records.label}: no pair is left by debias_length: the longer answer is "
                    "always chosen, or never"
                )
        self._records = records.only(kept)

    @property
    def fingerprint(self) -> str:
        """Of the lines, and of their order."""
        return self._records.fingerprint

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Pair:
        return self._pair(self._records[index])

    def rows(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The arrays of ``answer_rows`` [B, 2, ...], the chosen answer first."""
        flat = answer_rows(
            [answer for index in indices for answer in self[index]], self._config, self._seq_len
        )
        return {name: x.reshape(-1, 2, *x.shape[1:]) for name, x in flat.items()}

    def _pair(self, record) -> Pair:
        said = record.content
        assert isinstance(said, Preference)
        try:
            return Pair(*(
                answer_to(said.messages, answer, self._tokenizer, self._format, said.tools)
                for answer in (said.chosen, said.rejected)
            ))  # fmt: skip
        except UserError as error:
            raise UserError(f"{record.place}: {error}") from None
