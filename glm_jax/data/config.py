"""What a user may say about the data: one frozen dataclass that tyro turns into options."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it becomes batches."""

    source: str = "python_docs"
    """python_docs (the documentation of this Python), files:GLOB (.txt, .jsonl, .parquet; the first
    two also .gz or .zst) or tfds:NAME (any TFDS data set, name/config:version)."""
    text_field: str = "text"
    """Field that holds the text (.jsonl, .parquet, TFDS)."""
    on_bad: Literal["raise", "skip"] = "raise"
    """What to do with a record that cannot be read: stop with an error, or count it and go on."""
    heldout_percent: float = 3.0
    """Share of the documents kept for evaluation (each document's hash decides)."""
    cache_dir: str = "~/.cache/glm_jax"
    """Where prepared data sets are kept."""
    infilling: str = "demo"
    """Blank-infilling recipe: a name in glm_jax.data.INFILLING_PRESETS."""
    isolate: bool = True
    """Packed examples do not see each other (False: they do, as in THUDM/GLM)."""
    open_rows: int = 16
    """Rows that each stream packs at once; more leave less padding and delay examples more."""
    num_workers: int = 0
    """Worker processes; 0 works in a thread of this process. The batches are the same."""
    prefetch: int = 4
    """Batches made ahead of their use."""
