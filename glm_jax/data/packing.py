"""Examples of unequal length into rows of one length, each seeing only itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from glm_jax.data.layout import Example

Row = dict[str, np.ndarray]


def empty_row(length: int, pad_id: int = 0) -> Row:
    """A row of padding: it predicts nothing and sees nothing."""
    zeros = lambda *shape: np.zeros(shape, np.int32)
    return {
        "tokens": np.full(length, pad_id, np.int32),
        "targets": zeros(length),
        "loss_weights": np.zeros(length, np.float32),
        "positions": zeros(2, length),
        "k_start": zeros(length),
        "k_end": zeros(length),
        "objective": np.full(length, -1, np.int32),
    }


@dataclasses.dataclass(eq=False)
class _OpenRow:
    used: int = 0
    members: list[tuple[Example, int, Any]] = dataclasses.field(default_factory=list)


class Packer:
    """Best-fit packing with a bounded number of open rows.

    An example goes to the open row that it fills most; where it fits none, the fullest row is
    handed out. Nothing is random, so the same examples give the same rows.

    Args:
      length: slots per row.
      pad_id: token of empty slots.
      isolate: each example sees only itself. False: it also sees all that stands before it in its
        row, Part B included (``k_start`` is 0 for everyone, ``k_end`` stays). That is as near as
        one run of keys comes to THUDM/GLM, where documents that share a sample see each other both
        ways; for exactly that, give ``make_example`` a sample of several documents.
      open_rows: rows that wait for what fits them; more of them leave less padding.
      share_rows: a row holds several examples; otherwise one, handed out at once.
    """

    def __init__(
        self,
        length: int,
        pad_id: int = 0,
        *,
        isolate: bool = True,
        open_rows: int = 16,
        share_rows: bool = True,
    ):
        self.length, self._pad_id, self._isolate = length, pad_id, isolate
        self._max_open, self._share_rows = open_rows, share_rows
        self._open: list[_OpenRow] = []

    def add(self, example: Example, objective: int, tag: Any = None) -> list[Row]:
        """Takes one more example; returns the rows that this completes.

        ``tag`` (JSON) names the example in ``get_state``.

        Raises:
          ValueError: the example is longer than a row.
        """
        size = len(example.tokens)
        if size > self.length:
            raise ValueError(f"an example of {size} tokens does not fit a row of {self.length}")
        fitting = [row for row in self._open if row.used + size <= self.length]
        done: list[Row] = []
        if fitting:
            row = max(fitting, key=lambda r: r.used)
        else:
            if len(self._open) == self._max_open:
                done.append(self._close(max(self._open, key=lambda r: r.used)))
            row = _OpenRow()
            self._open.append(row)
        row.members.append((example, objective, tag))
        row.used += size
        if row.used == self.length or not self._share_rows:
            done.append(self._close(row))
        return done

    def free(self) -> list[int]:
        """Empty slots of each open row."""
        return [self.length - row.used for row in self._open]

    def flush(self) -> list[Row]:
        """Hands out every open row, oldest first."""
        return [self._close(row) for row in list(self._open)]

    def get_state(self) -> dict[str, list]:
        """The tags of what each open row holds."""
        return {"rows": [[tag for _, _, tag in row.members] for row in self._open]}

    def set_state(
        self, state: dict[str, list], rebuild: Callable[[Any], tuple[Example, int]]
    ) -> None:
        """Goes on from ``get_state``; ``rebuild(tag)`` makes each example and objective again."""
        self._open = []
        for tags in state["rows"]:
            members = [(*rebuild(tag), tag) for tag in tags]
            self._open.append(_OpenRow(sum(len(e.tokens) for e, _, _ in members), members))

    def _close(self, row: _OpenRow) -> Row:
        self._open.remove(row)
        out = empty_row(self.length, self._pad_id)
        start = 0
        for example, objective, _ in row.members:
            at = slice(start, start + len(example.tokens))
            out["tokens"][at], out["targets"][at] = example.tokens, example.targets
            out["loss_weights"][at] = example.loss_weights
            out["positions"][:, at] = example.positions
            out["k_start"][at] = start if self._isolate else 0
            out["k_end"][at] = start + example.k_end
            out["objective"][at] = objective
            start = at.stop
        return out
