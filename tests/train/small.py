"""A small GLM and batches for it."""

from __future__ import annotations

import numpy as np

from glm_jax.data import Packer, layout_spans
from glm_jax.presets import glm
from glm_jax.special import SpecialTokens

SPECIAL = SpecialTokens(
    pad=0, eos=0, cls=1, sep=2, mask=3, unk=4, sop=5, eop=6, gmask=7, smask=8, dblock=9
)
CONFIG = glm("small", 2, 64, 4, 64, 128, SPECIAL)
QUIET = CONFIG.replace(embed_dropout=0.0, attention_dropout=0.0, hidden_dropout=0.0)


def batch(rows: int, length: int = 48, seed: int = 0) -> dict[str, np.ndarray]:
    """Packed blank-infilling examples of random ids, with a very different number of predicted
    tokens in every row."""
    rng = np.random.default_rng(seed)
    finished: list[dict[str, np.ndarray]] = []
    for row in range(rows):
        packer = Packer(length, SPECIAL.pad)
        for objective in range(2):
            tokens = rng.integers(10, 128, 18).astype(np.int32)
            spans = [(2, 3 + row % 6), (12, 13 + objective)]
            example = layout_spans(tokens, spans, [1, 0], mask_id=3, sop_id=5, eop_id=6)
            finished += packer.add(example, objective)
        finished += packer.flush()
    return {name: np.stack([row[name] for row in finished]) for name in finished[0]}
