"""The engine's view of the device: requests in, tokens out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from glm_jax.nn import GLM, Compute
from glm_jax.serve.request import Request, Token
from glm_jax.serve.slots import (
    MOST_STEPS,
    MOST_STOPS,
    NO_TOKEN,
    Piece,
    RowRules,
    Slots,
    Written,
    empty_slots,
    read,
    write,
)
from glm_jax.text.decoding_loop import Next
from glm_jax.text.layout import LaidOut
from glm_jax.text.prepare import decode_compute, prepare
from glm_jax.text.sampling import RowSampling

_SHORTEST = 32


class Rows:
    """Slots on the device, and the lengths that prompts are padded to.

    Args:
      slots: rows of the cache.
      length: tokens per row.
      chunk: most tokens of a causal prompt to read at a time.
    """

    def __init__(
        self, model: GLM, slots: int, length: int, chunk: int, compute: Compute | None = None
    ):
        self.length, self.count = length, slots
        self._compute = decode_compute(model, compute)
        self.model = prepare(model)
        whole = model.config.prefix_lm
        self._widths = _widths(length if whole else min(chunk, length))
        self.clear()

    @property
    def lost(self) -> bool:
        """Whether a call failed after it had taken the slots' memory."""
        return any(leaf.is_deleted() for leaf in jax.tree.leaves(self._slots))

    def clear(self) -> None:
        """Empties every slot."""
        self._slots: Slots = empty_slots(self.model, self.count, self.length, self._compute)

    def warm_up(self, progress: Callable[[str], None]) -> None:
        """Compiles every program that requests can need; the slots stay free."""
        total = len(self._widths) + 1
        for i, width in enumerate(self._widths):
            progress(f"compiling {i + 1} of {total}: reading {width} tokens")
            row = LaidOut(np.zeros(1, np.int32), np.zeros((2, 1), np.int32), 0, None)
            sampling = RowSampling.make(1)
            nobody = Request(row, 1, (), sampling, lambda news: None)
            self._call_read(0, _piece(row, 0, 1, width), _following(row), _rules(nobody))
        self.clear()
        progress(f"compiling {total} of {total}: writing to {self.count} rows")
        self._call_write(np.zeros(self.count, bool), 1, False)

    def read(self, request: Request) -> tuple[int, Token | None]:
        """Reads the next piece of its prompt; its first token if that was the last piece.

        Returns:
          How many tokens, padding included, the device had to read; and the token.
        """
        start, row = request.read, request.prompt
        width = self._width(request.length - start)
        end = min(start + width, request.length)
        piece = _piece(row, start, end, width)
        written = self._call_read(request.slot, piece, _following(row), _rules(request))
        request.read = end
        if end < request.length:
            return width, None
        [token] = _tokens(jax.device_get(written), 0, request.likely)
        return width, token

    def write(
        self, writing: Mapping[int, Request], steps: int, *, until_free: bool
    ) -> tuple[dict[int, list[Token]], int]:
        """Up to ``steps`` tokens for each of these; the other slots' rows end.

        Returns:
          The tokens by slot, and how many steps there were.
        """
        keep = np.zeros(self.count, bool)
        keep[list(writing)] = True
        written = self._call_write(keep, min(steps, MOST_STEPS), until_free)
        wanted: Any = written
        if not any(request.likely for request in writing.values()):
            wanted = wanted._replace(likely=None, likely_logprobs=None)
        written = jax.device_get(wanted)
        done = int((written.tokens != NO_TOKEN).any(0).sum())
        return {i: _tokens(written, i, r.likely) for i, r in writing.items()}, done

    def _width(self, unread: int) -> int:
        return next((w for w in self._widths if w >= unread), self._widths[-1])

    def _call_read(self, slot, piece, following, rules) -> Written:
        self._slots, written = read(
            self.model, self._slots, np.int32(slot), piece, following, rules,
            compute=self._compute,
        )  # fmt: skip
        return written

    def _call_write(self, keep, steps: int, until_free: bool) -> Written:
        self._slots, written = write(
            self.model, self._slots, keep, np.int32(steps), np.bool_(until_free),
            compute=self._compute,
        )  # fmt: skip
        return written


def _widths(most: int) -> tuple[int, ...]:
    """Lengths to pad to, up to the longest there can be: two sizes to every power of two, so that
    a seventh of what is read is padding and not a quarter.

    >>> _widths(200)
    (32, 48, 64, 96, 128, 192, 200)
    """
    doubling = [1 << bits for bits in range(_SHORTEST.bit_length() - 1, most.bit_length())]
    sizes = [size for power in doubling for size in (power, power + power // 2)]
    return (*(size for size in sizes if size < most), most)


def _piece(row: LaidOut, start: int, end: int, width: int) -> Piece:
    """Tokens start to end of a prompt, padded."""
    length = end - start
    tokens, k_end = np.zeros((2, 1, width), np.int32)
    positions = np.zeros((1, 2, width), np.int32)
    tokens[0, :length] = row.tokens[start:end]
    positions[0, :, :length] = row.positions[:, start:end]
    k_end[0, :length] = np.maximum(np.arange(start + 1, end + 1), row.sep)
    is_last = np.bool_(end == len(row.tokens))
    arrays: Any = (tokens, positions, k_end, np.int32(start), np.int32(length), is_last)
    return Piece(*arrays)


def _following(row: LaidOut) -> Next:
    """Where the first token after a prompt goes."""
    place, block = row.following(1)[:, 0]
    numbers = (len(row.tokens), place, row.anchor is None, block, row.sep > 0)
    arrays: Any = [np.array([number], np.int32) for number in numbers]
    return Next(*arrays)


def _rules(request: Request) -> RowRules:
    arrays: Any = (
        request.padded_stops(MOST_STOPS),
        np.array([request.limit], np.int32),
        np.array([request.likely > 0]),
    )
    return RowRules(request.sampling, *arrays)


def _tokens(written: Written, row: int, likely: int) -> list[Token]:
    """What one row got."""
    found = []
    for i, index in enumerate(written.tokens[row].tolist()):
        if index == NO_TOKEN:
            break
        pairs = ()
        if likely:
            ids, scores = written.likely[row, i, :likely], written.likely_logprobs[row, i, :likely]
            pairs = tuple(zip(ids.tolist(), scores.tolist(), strict=True))
        found.append(Token(index, float(written.logprobs[row, i]), pairs))
    return found
