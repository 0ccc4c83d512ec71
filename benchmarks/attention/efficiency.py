"""How much the TPU kernel computes of what nobody sees: (blocks x their area) / visible pairs."""

from __future__ import annotations

import functools

import numpy as np
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Int

from benchmarks.attention.programs import heads_of
from benchmarks.data import tokenized
from glm_jax.data import INFILLING_PRESETS
from glm_jax.data.stream import Recipe, RowStream
from glm_jax.nn.masks import causal_ranges
from glm_jax.ops.attention.tpu import tables
from glm_jax.ops.attention.tpu.blocks import Blocks, Problem, choose

Ranges = tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"]]

VERSIONS = {"v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "tpu7x": "7x"}
MOST_CAUSAL, MOST_PACKED = 1.10, 1.25


@functools.cache
def packed_rows(infilling: str, rows: int, length: int) -> Ranges:
    """Key ranges of what the pretraining loader packs of this Python's documentation."""
    tokenizer, documents = tokenized()
    recipe = Recipe(tokenizer, INFILLING_PRESETS[infilling], length, seed=0)
    stream = RowStream(recipe, range(documents), documents, 0, 1)
    made = []
    while len(made) < rows and (row := stream.next_row()) is not None:
        made.append(row)
    return np.stack([row["k_start"] for row in made]), np.stack([row["k_end"] for row in made])


def causal_row(length: int, rows: int = 1) -> Ranges:
    start, end = causal_ranges(rows, length)
    return np.asarray(start), np.asarray(end)


def problem(model: str, length: int, chip: str) -> Problem:
    """One device's attention of one row in bfloat16."""
    heads, kv_heads, head_dim = heads_of(model)
    version = pltpu.ChipVersion(VERSIONS[chip])
    return Problem(
        batch=1, queries=length, keys=length, kv_heads=kv_heads, groups=heads // kv_heads,
        head_dim=head_dim, itemsize=2,
        vmem=pltpu.get_tpu_info_for_chip(version, 1).vmem_capacity_bytes,
    )  # fmt: skip


def ratio(blocks: Blocks, ranges: Ranges) -> float:
    """Pairs computed over pairs visible."""
    start, end = ranges
    part = blocks.part or blocks.tile
    table = tables.spans(start, end, tile=blocks.tile, unit=blocks.unit, part=part)
    computed = int(tables.units_computed(table)) * part * blocks.unit
    return computed / int(np.maximum(end.astype(np.int64) - start, 0).sum())


def worst(models: tuple[str, ...], ranges: Ranges) -> dict[str, float]:
    """By model: of the chips, and of the forward and the backward pass, the most wasteful."""
    length = ranges[0].shape[1]
    return {
        model: round(
            max(
                ratio(blocks, ranges)
                for chip in VERSIONS
                for blocks in set(choose(problem(model, length, chip)))
            ),
            4,
        )
        for model in models
    }
