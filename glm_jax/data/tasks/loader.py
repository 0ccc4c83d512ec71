"""Batches of a task, the same on any number of hosts, from any place in them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from glm_jax.config import GLMConfig
from glm_jax.data.tasks import examples
from glm_jax.data.tasks.options import TaskOptions
from glm_jax.data.tasks.records import LabelledText, TaskRecords, question_numbers
from glm_jax.errors import UserError
from glm_jax.text.tokenizer import Tokenizer

Arrays = dict[str, np.ndarray]


class TaskLoader:
    """An iterator of batches with ``get_state`` and ``set_state``, as Grain's.

    Every batch has ``label`` and ``weight`` [B], and ``tokens``, ``k_end`` [B, C, T], ``positions``
    [B, C, 2, T], ``lengths`` [B, C] of the C candidates of each example (1 for a text with a
    class); with candidates also ``slots``, ``answers``, ``answer_weights`` [B, C, A], ``valid``,
    ``credit`` and ``overlap`` [B, C] (``Cloze``) and ``question`` [B] (``question_numbers``).

    Args:
      labels: names of the classes, for texts with a class.
      rows: this process's rows of the global batch; all by default.
      seed: of the order, which differs from epoch to epoch.
      endless: False gives every example once, in order, the last batch filled with weight 0.

    Raises:
      UserError: there is no example, or one does not fit (when its batch is made; named).
    """

    def __init__(
        self,
        records: TaskRecords,
        task: TaskOptions,
        labels: Sequence[str],
        tokenizer: Tokenizer,
        config: GLMConfig,
        *,
        batch_size: int,
        seq_len: int,
        seed: int,
        rows: Sequence[int] | None = None,
        endless: bool = True,
    ):
        if not records:
            raise UserError("there is no example")
        self._records, self._task = records, task
        self._labels = {name: i for i, name in enumerate(labels)}
        self._tokenizer, self._config = tokenizer, config
        self._batch_size, self._seed, self._endless = batch_size, seed, endless
        self._rows = range(batch_size) if rows is None else rows
        self._step = 0
        self._question = question_numbers(records)
        self._shape = self._measure(seq_len)

    def _measure(self, seq_len: int) -> examples.Shape:
        clozes = [item for _, item in self._records if not isinstance(item, LabelledText)]
        if not clozes:
            return examples.Shape(1, seq_len, 0)
        answers = [examples.candidates(c, self._tokenizer, self._config) for c in clozes]
        longest = max(len(ids) for each in answers for ids in each)
        return examples.Shape(max(map(len, answers)), seq_len, longest)

    def __iter__(self) -> Iterator[Arrays]:
        return self

    def __next__(self) -> Arrays:
        first, count = self._step * self._batch_size, len(self._records)
        if not self._endless and first >= count:
            raise StopIteration
        self._step += 1
        made = [self._at(first + row) for row in self._rows]
        return {name: np.stack([one[name] for one in made]) for name in made[0]}

    def _at(self, position: int) -> Arrays:
        epoch, index = divmod(position, len(self._records))
        if not self._endless:
            return self._arrays(index) | {"weight": np.array(epoch == 0, np.float32)}
        return self._arrays(int(self._order(epoch)[index])) | {"weight": np.array(1, np.float32)}

    def _arrays(self, index: int) -> Arrays:
        place, item = self._records[index]
        try:
            if isinstance(item, LabelledText):
                text, name = item
                made = examples.labelled(
                    text, self._labels[name], self._tokenizer, self._config, self._shape.length
                )
                arrays = examples.row_arrays([made.row], self._shape)
                return arrays | {"label": np.array(made.label, np.int32)}
            made = examples.choice(item, self._tokenizer, self._config, self._shape.length)
            arrays = examples.choice_arrays(made, self._shape, self._task.length_penalty)
            return arrays | {"question": np.array(self._question[index], np.int32)}
        except UserError as error:
            raise UserError(f"{place}: {error}") from None

    @functools.lru_cache(maxsize=2)  # noqa: B019 the loader lives as long as the run
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._records))

    def get_state(self) -> dict[str, Any]:
        """As of ``glm_jax.data``'s loaders: a place for every row of the global batch."""
        return {"rows": {str(row): str(self._step) for row in self._rows}}

    def set_state(self, state: dict[str, Any]) -> None:
        self._step = int(next(iter(state["rows"].values())))

    def close(self) -> None:
        """Nothing is open."""
