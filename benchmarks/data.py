"""Masking and packing of tokenized documents on one core: tokens per second and padding.

    python -m benchmarks.data

The corpus is the documentation of the Python that runs it, tokenized once before the clock starts.
Speed counts the document tokens that go in; the limit beside it is a plain copy of the same tokens
into rows, which no masking can beat.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time

import numpy as np
import tyro

from glm_jax.data import INFILLING_PRESETS, Packer, make_example
from glm_jax.data.config import DataConfig
from glm_jax.data.corpus import open_corpus
from glm_jax.text import SentencePieceTokenizer, train_sentencepiece


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    infilling: str = "ds_block_10B"
    """Blank-infilling recipe: a name in glm_jax.data.INFILLING_PRESETS."""
    seq_len: int = 1024
    """Slots per row."""
    open_rows: int = 64
    """Rows that are packed at once."""
    documents: int = 4000
    """Documents of the corpus to use."""
    repeats: int = 5
    """Runs; the median counts."""


def tokenized(options: Options) -> tuple[list[np.ndarray], SentencePieceTokenizer]:
    """Samples ``[CLS] text eos`` of at most nine tenths of a row, so that every layout fits."""
    corpus = open_corpus(DataConfig(), "train")
    texts = [corpus[i] for i in range(min(options.documents, len(corpus)))]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_sentencepiece(iter(texts), 8192, folder)
    special, room = tokenizer.special, int(options.seq_len * 0.87)
    samples = []
    for text in texts:
        ids = [*tokenizer.encode(text), special.eos]
        samples += [np.array([special.cls, *ids[i : i + room]]) for i in range(0, len(ids), room)]
    return [s.astype(np.int32) for s in samples], tokenizer


def mask_and_pack(samples, tokenizer, options: Options) -> tuple[float, float]:
    """(seconds, padding fraction) of one pass."""
    infilling = INFILLING_PRESETS[options.infilling]
    packer, rows = Packer(options.seq_len, open_rows=options.open_rows), []
    begin = time.perf_counter()
    for i, sample in enumerate(samples):
        rng = np.random.Generator(np.random.Philox(key=np.array([0, i], np.uint64)))
        made = make_example(sample, tokenizer.special, infilling, rng, tokenizer.sentence_ends)
        if made is not None and len(made[0].tokens) <= options.seq_len:
            rows += packer.add(*made)
    rows += packer.flush()
    seconds = time.perf_counter() - begin
    used = sum(int((row["objective"] >= 0).sum()) for row in rows)
    return seconds, 1 - used / (len(rows) * options.seq_len)


def copy_only(samples, options: Options) -> float:
    """Seconds to copy the same tokens into rows."""
    begin = time.perf_counter()
    flat = np.concatenate(samples)
    flat = np.pad(flat, (0, -len(flat) % options.seq_len)).reshape(-1, options.seq_len)
    [row.copy() for row in flat]
    return time.perf_counter() - begin


def main(options: Options) -> None:
    samples, tokenizer = tokenized(options)
    total = sum(map(len, samples))
    runs = [mask_and_pack(samples, tokenizer, options) for _ in range(options.repeats)]
    seconds = statistics.median(s for s, _ in runs)
    copying = statistics.median(copy_only(samples, options) for _ in range(options.repeats))
    result = {
        "benchmark": "data",
        "tokens_per_s": round(total / seconds),
        "padding_fraction": round(runs[0][1], 4),
        "examples_per_s": round(len(samples) / seconds),
        "tokens": total,
        "copy_only_tokens_per_s": round(total / copying),
        "infilling": options.infilling,
        "seq_len": options.seq_len,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
