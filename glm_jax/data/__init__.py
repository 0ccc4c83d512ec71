"""From documents to batches: sources, blank infilling, packing.

A batch is a flat dict of arrays, B rows of T slots:
  tokens, targets [B, T] int32; targets are aligned with tokens
  loss_weights [B, T] float32; 0 where nothing is predicted
  positions [B, 2, T] int32; position and block position, restarting for every example
  k_start, k_end [B, T] int32; the run of keys each query sees (both 0 on padding)
  objective [B, T] int32; index into OBJECTIVES, -1 on padding
"""

from glm_jax.data.config import DataConfig
from glm_jax.data.corpus import Corpus, open_corpus
from glm_jax.data.finetune import PARTS, FinetuneData, make_finetune_loader
from glm_jax.data.layout import (
    Example,
    layout_cloze,
    layout_seq2seq,
    layout_spans,
    layout_suffix,
    layout_unidirectional,
)
from glm_jax.data.objectives import INFILLING_PRESETS, OBJECTIVES, Infilling, make_example
from glm_jax.data.packing import Packer, empty_row
from glm_jax.data.pipeline import make_loader

__all__ = [
    "INFILLING_PRESETS",
    "OBJECTIVES",
    "PARTS",
    "Corpus",
    "DataConfig",
    "Example",
    "FinetuneData",
    "Infilling",
    "Packer",
    "empty_row",
    "layout_cloze",
    "layout_seq2seq",
    "layout_spans",
    "layout_suffix",
    "layout_unidirectional",
    "make_example",
    "make_finetune_loader",
    "make_loader",
    "open_corpus",
]
