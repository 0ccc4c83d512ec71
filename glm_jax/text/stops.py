"""Texts that end an answer, found while it is being written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from glm_jax.text.tokenizer import IncrementalDecoder, Tokenizer


class StopTexts:
    """Passes a text on up to where the first of some texts begins."""

    def __init__(self, stop: Sequence[str]):
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        if self.found or not self._stop:
            return "" if self.found else text
        text = self._held + text
        places = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = max(begun(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text


def begun(text: str, whole: str) -> int:
    """Length of the longest beginning of ``whole``, but not all of it, that ends the text."""
    longest = min(len(whole) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(whole[:n])), 0)


class RowStop:
    """Finds the token of one answer that completes a stop text."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
        self._decoder = IncrementalDecoder(tokenizer)
        self._texts = StopTexts(stop)
        self._read = 0
        self.at: int | None = None
        """How many ids the answer has up to there; None while no text has come."""

    def push(self, ids: Iterable[int]) -> None:
        for index in ids:
            if self.at is not None:
                return
            self._read += 1
            self._texts.push(self._decoder.push([index]))
            if self._texts.found:
                self.at = self._read
