"""Who sees whom: attention masks, drawn from the two key ranges that the network computes with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from glm_jax.viz.sketch import Sketch
from glm_jax.viz.style import (
    HIDDEN,
    INK,
    PART_A,
    PART_B,
    PART_B_BACK,
    PAST,
    bare,
    new_figure,
)

_COLOURS = (HIDDEN, PART_A, PART_B_BACK, PART_B, PAST)
_MEANINGS = (
    "hidden",
    "Part A sees Part A, both ways",
    "Part B sees Part A",
    "Part B sees its past",
    "every token sees its past",
)
_WEIGHTS = LinearSegmentedColormap.from_list("weights", [HIDDEN, PART_B_BACK, PART_B, "#7d2e1c"])


def kinds(sketch: Sketch) -> Int[np.ndarray, "T T"]:
    """0 hidden, 1 Part A to Part A, 2 Part B to Part A, 3 Part B to itself, 4 plain causal."""
    query, key = sketch.in_part_b[:, None], sketch.in_part_b
    kind = np.where(query, np.where(key, 3, 2), 1) if key.any() else 4
    return np.where(sketch.seen, kind, 0)


def draw_ranges(
    sketches: Sequence[Sketch], titles: Sequence[str] | None = None, *, cell: float = 0.27
) -> Figure:
    """Masks side by side, each above its position row and, where it has one, its block row.

    Args:
      cell: inches of one token.
    """
    longest = max(len(s.words) for s in sketches)
    size = max(3.2, longest * cell)
    figure = new_figure((size + 0.9) * len(sketches), size + 2.2)
    axes = figure.subplots(2, len(sketches), height_ratios=(longest, 2.2), squeeze=False)
    for i, sketch in enumerate(sketches):
        draw_mask(axes[0, i], sketch)
        draw_positions(axes[1, i], sketch)
        if titles:
            axes[0, i].set_title(titles[i], color=INK, weight="bold", pad=12)
    figure.align_titles()
    used = sorted({int(kind) for s in sketches for kind in np.unique(kinds(s))})
    handles = [Patch(facecolor=_COLOURS[k], edgecolor="#cccccc", label=_MEANINGS[k]) for k in used]
    figure.legend(handles=handles, loc="outside lower center", ncol=3, frameon=False, fontsize=9)
    return figure


def draw_mask(axes: Axes, sketch: Sketch) -> None:
    """Queries downwards, keys to the right; lines where one packed example ends."""
    colours = ListedColormap(_COLOURS)
    last = len(_COLOURS) - 1
    axes.imshow(
        kinds(sketch), cmap=colours, vmin=0, vmax=last, interpolation="nearest", aspect="auto"
    )
    _name_tokens(axes, sketch)
    for edge in np.flatnonzero(np.diff(sketch.k_start)) + 0.5:
        axes.axhline(edge, color=INK, linewidth=0.8)
        axes.axvline(edge, color=INK, linewidth=0.8)


def draw_positions(axes: Axes, sketch: Sketch) -> None:
    """The numbers of the position rows, one column a token; a block row of zeros is left out."""
    bare(axes)
    rows = {"position": sketch.positions[0]}
    if sketch.in_part_b.any():
        rows["block"] = sketch.positions[1]
    fills = PART_A, PART_B_BACK
    for y, (name, values) in enumerate(rows.items()):
        axes.text(-0.8, y, name, ha="right", va="center", fontsize=9, color=INK)
        for x, value in enumerate(values):
            fill = fills[int(sketch.in_part_b[x])] if value or y == 0 else HIDDEN
            axes.add_patch(_cell(x, y, fill))
            axes.text(x, y, str(value), ha="center", va="center", fontsize=8, color=INK)
    axes.set_xlim(-0.5, len(sketch.words) - 0.5)
    axes.set_ylim(1.6, -0.6)


def draw_weights(
    sketch: Sketch,
    weights: Float[np.ndarray, "P T T"],
    titles: Sequence[str],
    *,
    cell: float = 0.27,
) -> Figure:
    """Attention probabilities that a model gave (``attention_weights``), one panel for each.

    What a query does not see is grey, however small what it does see may be.
    """
    size = max(3.2, len(sketch.words) * cell)
    figure = new_figure((size + 0.8) * len(weights), size + 0.9)
    panels = figure.subplots(1, len(weights), squeeze=False)[0]
    for axes, probs, title in zip(panels, weights, titles, strict=True):
        shown = np.where(sketch.seen, probs, np.nan)
        axes.set_facecolor("#dcdcdc")
        image = axes.imshow(shown, cmap=_WEIGHTS, vmin=0, vmax=1, interpolation="nearest")
        _name_tokens(axes, sketch)
        axes.set_title(title, color=INK, weight="bold", pad=12)
        figure.colorbar(image, ax=axes, shrink=0.6, label="attention probability")
    return figure


def _name_tokens(axes: Axes, sketch: Sketch) -> None:
    places = np.arange(len(sketch.words))
    axes.set_xticks(places, sketch.words, rotation=90, fontsize=9)
    axes.set_yticks(places, sketch.words, fontsize=9)
    axes.tick_params(length=0, colors=INK, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(places[1:] - 0.5, minor=True)
    axes.set_yticks(places[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)


def _cell(x: float, y: float, colour: str) -> Rectangle:
    return Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, facecolor=colour, edgecolor="none")
