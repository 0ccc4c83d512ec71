"""Pictures of the family, drawn by running the code they show.

>>> from glm_jax import preset, viz
>>> row = viz.sketch(preset("glm-10b"), "[CLS] the [MASK] sat on a mat eos sop cat")
>>> viz.draw_ranges([row])        # in a notebook, shown; elsewhere, .savefig("ranges.png")

Every ``draw_`` function returns a matplotlib ``Figure`` that belongs to no window.
"""

from glm_jax.viz.ranges import draw_mask, draw_positions, draw_ranges, draw_weights
from glm_jax.viz.rotary import (
    draw_pairs,
    draw_reach,
    draw_tables,
    draw_turns,
    draw_two_distances,
    partners,
    similarity,
    turned_units,
    wavelengths,
)
from glm_jax.viz.sketch import Sketch, seen, sketch, sketch_ids, sketch_packed, sketch_row
from glm_jax.viz.structure import cache_bytes, describe, draw_blocks, draw_sizes, part_sizes, table
from glm_jax.viz.weights import attention_weights

__all__ = [
    "Sketch",
    "attention_weights",
    "cache_bytes",
    "describe",
    "draw_blocks",
    "draw_mask",
    "draw_pairs",
    "draw_positions",
    "draw_ranges",
    "draw_reach",
    "draw_sizes",
    "draw_tables",
    "draw_turns",
    "draw_two_distances",
    "draw_weights",
    "part_sizes",
    "partners",
    "seen",
    "similarity",
    "sketch",
    "sketch_ids",
    "sketch_packed",
    "sketch_row",
    "table",
    "turned_units",
    "wavelengths",
]
