"""One row stream: its documents, in order, to blank-infilling examples, to packed rows."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
from collections.abc import Sequence, Sized
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from glm_jax.data.layout import Example
from glm_jax.data.objectives import Infilling, make_example
from glm_jax.data.packing import Packer, Row
from glm_jax.errors import UserError
from glm_jax.text.tokenizer import Tokenizer

# A sample's name: its document's position in the shuffled sequence (epochs count on), its first
# token there, one past its last. The first two are the "example index" that seeds its randomness.
SampleId = tuple[int, int, int]
_OFFSET_BITS = 24
_TRIES = 8  # draws of an example that turns out longer than a row, before it is dropped
_SHORTEST = 32  # tokens of a sample cut short
_FILL = 24  # empty slots of a row that are worth filling with a piece of a long document
MIN_SEQ_LEN = 32


class Texts(Protocol):
    """Documents by position, epochs counted on: a list, or Grain's MapDataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@functools.cache
def sample_len(slots: int) -> int:
    """Tokens of the longest sample ([CLS] and eos included) that should fit so many slots.

    In the span layouts a sample of L tokens becomes L + 2n. The n spans have a mean length of 3.157
    and cover 15 %, so n is about 0.0475 L, with a deviation near 0.55 sqrt(n): room is left for two
    deviations more. What turns out longer is drawn again.
    """
    length = slots
    while length > 8:
        spans = 0.15 * length / 3.157 + 0.5
        if length + 2 * (spans + 2 * 0.55 * math.sqrt(spans)) <= slots:
            break
        length -= 1
    return length


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that turns documents into rows, the same for every stream."""

    tokenizer: Tokenizer
    infilling: Infilling
    seq_len: int
    seed: int
    isolate: bool = True
    open_rows: int = 16
    start: tuple[int, ...] = dataclasses.field(init=False)
    """[CLS], where the vocabulary has it (ChatGLM-6B's has not)."""
    eos: int = dataclasses.field(init=False)
    pad: int = dataclasses.field(init=False)

    def __post_init__(self):
        # The ids that are added here; raises ValueError for a vocabulary without one of them.
        special = self.tokenizer.special
        eos, pad = special.require("eos", "pad")
        start = () if special.cls is None else (special.cls,)
        for name, value in (("start", start), ("eos", eos), ("pad", pad)):
            object.__setattr__(self, name, value)

    @property
    def share_rows(self) -> bool:
        return True

    def document(self, text: str) -> Int[np.ndarray, "n"]:
        """Tokens of a document and its eos; nothing for a blank text."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return np.array([*ids, self.eos] if ids else [], np.int32)

    def cut(
        self, document: Int[np.ndarray, "n"], position: int, begin: int, free: Sequence[int]
    ) -> int:
        """Where the sample that begins here ends.

        A document too long for a row is cut where a row that waits would be full, else where a new
        row would be; at a sentence's end if that leaves half of it (three quarters where it fills a
        row up). THUDM/GLM data_utils/datasets.py cuts on the right in the same way, but drops the
        rest of the document; here the next sample begins there. The recipe's share of short
        samples ends at a random length of 32 tokens or more (blocklm_utils.py).

        Args:
          free: empty slots of the rows that wait.
        """
        length = sample_len(self.seq_len) - 1  # [CLS] stands before it
        least = length // 2
        if self.infilling.short_seq_prob:
            rng = self._rng(position, begin, draw=1)
            if rng.random() < self.infilling.short_seq_prob:
                length = int(rng.integers(min(_SHORTEST, length), length + 1))
        if begin + length >= len(document):
            return len(document)
        gap = min((n for n in free if n >= _FILL), default=self.seq_len)
        if gap < self.seq_len // 2:
            length = min(length, sample_len(gap) - 1)
            least = length * 3 // 4
        least = begin + min(least, length)
        ends = np.flatnonzero(self.tokenizer.sentence_ends[document[least : begin + length]])
        return least + int(ends[-1]) + 1 if len(ends) else begin + length

    def _rng(self, position: int, begin: int, draw: int) -> np.random.Generator:
        """Randomness of (seed, example index) alone; draws of different number are independent."""
        key = np.array([self.seed, (position << _OFFSET_BITS) + begin], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, draw]))

    def example(self, document: Int[np.ndarray, "n"], sample: SampleId) -> tuple | None:
        """The (example, objective) of a sample; None if it has none, or none that fits a row."""
        position, begin, end = sample
        tokens = np.concatenate([np.array(self.start, np.int32), document[begin:end]])
        rng = self._rng(position, begin, draw=0)
        ends = self.tokenizer.sentence_ends
        for _ in range(_TRIES):
            made = make_example(tokens, self.tokenizer.special, self.infilling, rng, ends)
            if made is None or len(made[0].tokens) <= self.seq_len:
                return made
        return None


class RowRecipe(Protocol):
    """What turns the records of a data set into rows: ``Recipe`` for blank infilling.

    A document is whatever has a length; the sample ``begin`` to ``cut(document, ...)`` of it gives
    one example. Nothing may depend on anything but the record, its position and the seed.
    """

    @property
    def seq_len(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def isolate(self) -> bool: ...
    @property
    def open_rows(self) -> int: ...
    @property
    def share_rows(self) -> bool:
        """Whether a row holds several examples."""
        ...

    def document(self, text: Any, /) -> Sized: ...
    def cut(self, document: Any, position: int, begin: int, free: Sequence[int], /) -> int: ...
    def example(self, document: Any, sample: SampleId, /) -> tuple[Example, int] | None: ...


class RowStream:
    """Rows of the documents ``index, index + count, index + 2 count, ...`` of a sequence of texts.

    Its state is small: the place of the next sample, and the names of the examples in open rows,
    which are made again from their texts when a state is restored.
    """

    def __init__(self, recipe: RowRecipe, texts: Texts, epoch_len: int, index: int, count: int):
        self._recipe, self._texts, self._epoch_len = recipe, texts, epoch_len
        self._first, self._count = index, count
        self._reset()

    def _reset(self) -> None:
        r = self._recipe
        self._position, self._offset = self._first, 0  # of the next sample
        self._document: Sized | None = None
        self._packer = Packer(
            r.seq_len, r.pad, isolate=r.isolate, open_rows=r.open_rows, share_rows=r.share_rows
        )
        self._ready: collections.deque[Row] = collections.deque()
        self._before = self._snapshot()  # when none of the ready rows was made yet
        self._taken = 0  # how many rows made since then were handed out
        self._fruitless = 0  # documents since the last example
        self._flushed = False

    def next_row(self) -> Row | None:
        """The next row; None when the documents have come to their end.

        Raises:
          UserError: two passes' worth of documents gave no example.
        """
        while not self._ready:
            if self._flushed:
                return None
            self._before, self._taken = self._snapshot(), 0
            self._ready.extend(self._step())
        self._taken += 1
        return self._ready.popleft()

    def get_state(self) -> str:
        """JSON; every row handed out so far lies before it."""
        if self._ready or self._flushed:
            return json.dumps([*self._before, self._taken])
        return json.dumps([*self._snapshot(), 0])

    def set_state(self, state: str) -> None:
        """Goes on where ``get_state`` was called."""
        self._reset()
        self._position, self._offset, packed, taken = json.loads(state)
        self._packer.set_state(packed, self._remake)
        for _ in range(taken):
            self.next_row()

    def _snapshot(self) -> tuple:
        return self._position, self._offset, self._packer.get_state()

    def _step(self) -> list[Row]:
        """Takes one sample further, or closes the open rows where there is none."""
        sample = self._next_sample()
        if sample is None or self._document is None:
            self._flushed = True
            return self._packer.flush()
        made = self._recipe.example(self._document, sample)
        if made is None:
            return []
        self._fruitless = 0
        return self._packer.add(*made, tag=sample)

    def _next_sample(self) -> SampleId | None:
        """Names the sample that begins at the present place, and moves on behind it."""
        while True:
            if self._document is None:
                if self._position >= len(self._texts):
                    return None
                self._document = self._load(self._position)
            if self._offset < len(self._document):
                break
            self._position, self._offset = self._position + self._count, 0
            self._document = None
        begin = self._offset
        self._offset = self._recipe.cut(self._document, self._position, begin, self._packer.free())
        return self._position, begin, self._offset

    def _load(self, position: int) -> Sized:
        self._fruitless += 1
        if self._fruitless > 2 * self._epoch_len + 100:
            raise UserError(
                f"no text is long enough for an example: {self._fruitless} documents without one"
            )
        return self._recipe.document(self._texts[position])

    def _remake(self, sample: SampleId) -> tuple[Example, int]:
        """An example of an open row, from its name."""
        made = self._recipe.example(self._recipe.document(self._texts[sample[0]]), tuple(sample))
        assert made is not None, sample  # it was packed before, and nothing here is left to chance
        return made
