"""Cutting, masking and packing of tokenized documents on one core: tokens per second and padding.

    python -m benchmarks.data

The corpus is the documentation of the Python that runs it, tokenized before the clock starts; the
rest is the loader's own code. Speed counts document tokens; the limit beside it is a plain copy of
the same tokens into rows.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time

import numpy as np
import tyro

from glm_jax.data import INFILLING_PRESETS
from glm_jax.data.config import DataConfig
from glm_jax.data.corpus import open_corpus
from glm_jax.data.stream import Recipe, RowStream
from glm_jax.text import SentencePieceTokenizer, train_sentencepiece


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    infilling: str = "ds_block_10B"
    """Blank-infilling recipe: a name in glm_jax.data.INFILLING_PRESETS."""
    seq_len: int = 1024
    """Slots per row."""
    open_rows: int = DataConfig.open_rows
    """Rows that are packed at once."""
    repeats: int = 5
    """Runs; the median counts."""


class Tokenized:
    """Stands in for a tokenizer: its texts are numbers of documents tokenized before."""

    def __init__(self, tokenizer: SentencePieceTokenizer, texts: list[str]):
        self._ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        self.special, self.sentence_ends = tokenizer.special, tokenizer.sentence_ends

    def encode(self, index: int, add_special_tokens: bool = False) -> list[int]:
        return self._ids[index]

    def total(self) -> int:
        return sum(map(len, self._ids))


def tokenized() -> tuple[Tokenized, int]:
    corpus = open_corpus(DataConfig(), "train")
    texts = [corpus[i] for i in range(len(corpus))]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_sentencepiece(iter(texts), 8192, folder)
    return Tokenized(tokenizer, texts), len(texts)


def one_pass(tokenizer: Tokenized, documents: int, options: Options) -> tuple[float, float]:
    """(seconds, padding fraction) of one pass over the corpus."""
    infilling = INFILLING_PRESETS[options.infilling]
    recipe = Recipe(tokenizer, infilling, options.seq_len, seed=0, open_rows=options.open_rows)
    stream = RowStream(recipe, range(documents), documents, 0, 1)
    rows, begin = [], time.perf_counter()
    while (row := stream.next_row()) is not None:
        rows.append(row)
    seconds = time.perf_counter() - begin
    used = sum(int((row["objective"] >= 0).sum()) for row in rows)
    return seconds, 1 - used / (len(rows) * options.seq_len)


def copy_only(tokenizer: Tokenized, documents: int, options: Options) -> float:
    """Seconds to copy the same tokens into rows."""
    samples = [np.array(tokenizer.encode(i)) for i in range(documents)]
    begin = time.perf_counter()
    flat = np.concatenate(samples)
    flat = np.pad(flat, (0, -len(flat) % options.seq_len)).reshape(-1, options.seq_len)
    [row.copy() for row in flat]
    return time.perf_counter() - begin


def main(options: Options) -> None:
    tokenizer, documents = tokenized()
    runs = [one_pass(tokenizer, documents, options) for _ in range(options.repeats)]
    seconds = statistics.median(s for s, _ in runs)
    copying = statistics.median(
        copy_only(tokenizer, documents, options) for _ in range(options.repeats)
    )
    result = {
        "benchmark": "data",
        "tokens_per_s": round(tokenizer.total() / seconds),
        "padding_fraction": round(runs[0][1], 4),
        "tokens": tokenizer.total(),
        "documents": documents,
        "copy_only_tokens_per_s": round(tokenizer.total() / copying),
        "infilling": options.infilling,
        "seq_len": options.seq_len,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
