"""Greedy filling through the cache gives what full forward passes give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax import nn
from glm_jax.config import preset
from glm_jax.special import SpecialTokens
from glm_jax.text.infill import fill_greedily

SPECIAL = SpecialTokens(pad=0, eos=1, cls=2, mask=3, sop=4, eop=5)
CONFIG = preset("glm-base").replace(
    vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=4, head_dim=8, mlp_dim=64,
    max_seq_len=40, special=SPECIAL, init_std=0.3,
)  # fmt: skip


def by_full_forwards(model, part_a, at, steps):
    tokens, blocks, out = [*part_a, SPECIAL.sop], [0] * len(part_a) + [1], []
    for _ in range(steps):
        positions = [*range(len(part_a)), *[at] * len(out), at]
        ranges = nn.prefix_ranges(jnp.array([len(part_a)]), len(tokens))
        where = np.array([[positions, blocks]], np.int32)
        logits = model(np.array([tokens], np.int32), where, *ranges)
        out.append(int(logits[0, -1].argmax()))
        if out[-1] == SPECIAL.eop:
            return out[:-1]
        tokens.append(out[-1])
        blocks.append(len(out) + 1)
    return out


@pytest.mark.slow
def test_rows_of_unequal_length_are_filled_as_each_alone():
    model = nn.GLM(CONFIG, jax.random.key(1))
    part_as = [[2, 10, 11, 3, 12, 1], [2, 20, 3, 21, 22, 23, 24, 25, 1], [2, 3, 1]]
    at = [a.index(SPECIAL.mask) for a in part_as]
    filled = fill_greedily(model, [np.array(a) for a in part_as], at, max_new=6)
    assert filled == [by_full_forwards(model, a, m, 6) for a, m in zip(part_as, at, strict=True)]


def test_too_long_a_text_is_refused():
    model = nn.GLM(CONFIG, jax.random.key(1))
    with pytest.raises(ValueError, match="41 tokens is longer than the model's 40 positions"):
        fill_greedily(model, [np.full(41, 3)], [0])
