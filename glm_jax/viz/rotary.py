"""How positions reach the network: what turns in a head, how fast, and how far that is felt.

Every number comes out of ``glm_jax.nn.positions.Rope`` itself, which is given unit vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Patch

from glm_jax.config import GLMConfig
from glm_jax.nn.positions import Rope
from glm_jax.ops.rope import frequencies
from glm_jax.viz.sketch import Sketch
from glm_jax.viz.style import (
    FAMILY_COLOURS,
    INK,
    PART_A,
    PART_B,
    bare,
    new_figure,
    open_frame,
)

_TURN = LinearSegmentedColormap.from_list("turn", ["#c8553d", "#fbf7f0", "#2a6f97"])
_STILL = "#d9d9d6"


def turned_units(
    config: GLMConfig, positions: Int[np.ndarray, "2 T"]
) -> Float[np.ndarray, "T H H"]:
    """What becomes of each unit vector of a head at each place: the rotation, row by row."""
    length, size = positions.shape[1], config.head_dim
    units = jnp.broadcast_to(jnp.eye(size), (1, length, size, size))
    return np.asarray(Rope.make(config, jnp.asarray(positions)[None])(units)[0])


def partners(config: GLMConfig) -> Int[np.ndarray, " H"]:
    """With which other dimension each one of a head turns; itself where it does not turn."""
    turned = turned_units(config, np.ones((2, 1), np.int32))[0]
    own = np.eye(config.head_dim, dtype=bool)
    others = np.where(own, 0, np.abs(turned))
    return np.where(others.any(axis=1), others.argmax(axis=1), np.arange(config.head_dim))


def similarity(
    config: GLMConfig, distance: Int[np.ndarray, " N"], block_distance: int | np.ndarray = 0
) -> Float[np.ndarray, " N"]:
    """Cosine between a vector of ones, turned at place 0, and itself turned that far away."""
    far = np.stack([distance, np.broadcast_to(block_distance, distance.shape)]).astype(np.int32)
    ones = jnp.ones((1, far.shape[1], 1, config.head_dim))
    turned = np.asarray(Rope.make(config, jnp.asarray(far)[None])(ones))[0, :, 0]
    return turned.mean(axis=-1)  # the other is ones: it stands at 0 and has not turned


def wavelengths(config: GLMConfig) -> Float[np.ndarray, " R"]:
    """Tokens per whole turn of each pair, the fastest first."""
    freqs = frequencies(config.rope_dim, config.rope_theta, float16=config.rope_float16_freqs)
    return 2 * np.pi / freqs


def draw_turns(sketches: Mapping[str, tuple[GLMConfig, Sketch]]) -> Figure:
    """Every dimension of one head along a row of tokens: the cosine by which it keeps its value.

    Args:
      sketches: title -> model and row.
    """
    figure = new_figure(4.1 * len(sketches), 5.4)
    panels = figure.subplots(2, len(sketches), height_ratios=(1, 3.4), squeeze=False)
    image = None
    for i, (title, (config, sketch)) in enumerate(sketches.items()):
        top, head = panels[0, i], panels[1, i]
        _draw_rows(top, sketch)
        top.set_title(title, color=INK, weight="bold")
        turned = turned_units(config, sketch.positions)
        kept = np.diagonal(turned, axis1=1, axis2=2).T
        still = partners(config) == np.arange(config.head_dim)
        head.set_facecolor(_STILL)
        shown = np.where(still[:, None], np.nan, kept)
        options = {"aspect": "auto", "interpolation": "nearest"}
        image = head.imshow(shown, cmap=_TURN, vmin=-1, vmax=1, **options)
        if still.any():
            middle = np.flatnonzero(still).mean()
            text = (
                f"dimensions {np.flatnonzero(still)[0]} to {np.flatnonzero(still)[-1]}\nnever turn"
            )
            place = kept.shape[1] / 2, middle
            head.text(*place, text, ha="center", va="center", color=INK)
        elif config.rope_2d:
            head.axhline(config.head_dim / 2 - 0.5, color=INK, linewidth=1.2)
            for share, row in ((0.42, "position"), (0.92, "block position")):
                box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 2}
                place = 2, config.head_dim * share
                head.text(*place, f"turned by {row}", va="center", color=INK, bbox=box, fontsize=9)
        head.set_xlabel("token of the row")
        head.set_ylabel("dimension of a head" if i == 0 else "")
    if image is not None:
        figure.colorbar(image, ax=list(panels[1]), shrink=0.8, label="cosine of the angle")
    return figure


def draw_pairs(configs: Mapping[str, GLMConfig], head_dim: int = 16) -> Figure:
    """Which dimensions turn together, on a head small enough to see."""
    figure = new_figure(4.3 * len(configs), 2.3)
    for axes, (title, config) in zip(
        figure.subplots(1, len(configs), squeeze=False)[0], configs.items(), strict=True
    ):
        small = config.replace(head_dim=head_dim)
        pairs = partners(small)
        bare(axes)
        axes.set_title(title, color=INK, weight="bold")
        for d, other in enumerate(pairs.tolist()):
            second_half = config.rope_2d and d >= head_dim // 2
            colour = _STILL if other == d else PART_B if second_half else PART_A
            axes.plot(d, 0, "o", markersize=11, color=colour)
            axes.text(d, 0, str(d), ha="center", va="center", fontsize=7, color=INK)
            if other > d:
                box = ((d + other) / 2, 0.12), other - d, (other - d) * 0.55 + 0.5
                axes.add_patch(Arc(*box, theta1=0, theta2=180, color=colour, linewidth=2))
        axes.set_xlim(-0.8, head_dim - 0.2)
        axes.set_ylim(-0.7, 2.8)
    legend = {PART_A: "by position", PART_B: "by block position", _STILL: "stays as it is"}
    handles = [Patch(color=colour, label=label) for colour, label in legend.items()]
    figure.legend(handles=handles, loc="outside lower center", ncol=3, frameon=False)
    return figure


def draw_reach(configs: Mapping[str, GLMConfig]) -> Figure:
    """How slowly each pair turns, and how much alike a vector stays to itself far away.

    Dotted lines: the length that a model was trained for, where its curve on the right ends.
    """
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    # Several models share a curve; the later line lies thinner on the earlier.
    widths = np.linspace(5.0, 1.6, len(configs))
    for colour, width, (label, config) in zip(
        FAMILY_COLOURS, widths, configs.items(), strict=False
    ):
        line = {"color": colour, "linewidth": width}
        turns = wavelengths(config)
        left.plot(np.linspace(0, 1, len(turns)), turns, label=label, **line)
        left.axhline(config.max_seq_len, color=colour, linestyle=":", linewidth=1)
        away = np.geomspace(1, config.max_seq_len / _NEAR[1], 120)
        right.plot(away, _around(config, away, 0 * away), label=label, **line)
    left.set(yscale="log", xlabel="pairs of a head, fastest to slowest", ylabel="tokens",
             title="Tokens for one whole turn", xticks=[])  # fmt: skip
    right.set(xscale="log", xlabel="tokens apart", ylabel="cosine", ylim=(0, 1.02),
              title="A vector and itself, some tokens away")  # fmt: skip
    for axes in (left, right):
        open_frame(axes)
    left.legend(frameon=False, fontsize=9)
    return figure


def draw_two_distances(config: GLMConfig, reach: int = 2048) -> Figure:
    """With two-dimensional rotations: alike by distance in text and in block."""
    apart = np.geomspace(1, reach, 40)
    grid = np.stack(np.meshgrid(apart, apart)).reshape(2, -1)
    values = _around(config, *grid).reshape(len(apart), len(apart))
    figure = new_figure(5.0, 3.9)
    axes = figure.subplots()
    image = axes.pcolormesh(apart, apart, values, cmap="viridis", vmin=0, vmax=1, shading="gouraud")
    axes.contour(apart, apart, values, levels=(0.4, 0.6, 0.8), colors="white", linewidths=0.8)
    axes.set(xscale="log", yscale="log", xlabel="apart in position", ylabel="apart in block",
             title=f"{config.name}: two distances, one head")  # fmt: skip
    figure.colorbar(image, ax=axes, label="cosine")
    return figure


_NEAR = 0.8, 1.25


def _around(config: GLMConfig, distance: np.ndarray, block_distance: np.ndarray) -> np.ndarray:
    """Similarity at about these distances: a mean over some near by; single ones oscillate."""
    factors = np.random.default_rng(0).uniform(*_NEAR, (2, 32))
    pairs = np.stack([distance, block_distance])[:, :, None] * factors[:, None]
    whole = np.rint(pairs).astype(np.int64)
    return similarity(config, whole[0].ravel(), whole[1].ravel()).reshape(whole.shape[1:]).mean(-1)


def draw_tables(sketch: Sketch, title: str = "GLM: two learned tables") -> Figure:
    """Which row of which learned table is added to each token."""
    size = len(sketch.words)
    figure = new_figure(0.42 * size + 1.6, 4.6)
    panels = figure.subplots(2, 1, sharex=True)
    colours = np.where(sketch.in_part_b, PART_B, PART_A)
    for axes, values, name in zip(
        panels, sketch.positions, ("position", "block position"), strict=True
    ):
        axes.vlines(np.arange(size), -0.5, values, color=colours, alpha=0.35, linewidth=6)
        axes.scatter(np.arange(size), values, s=70, color=colours, zorder=3)
        axes.set(ylabel=f"row of {name}", ylim=(-0.8, max(values.max(), 3) + 0.8))
        axes.set_xticks(np.arange(size), sketch.words, rotation=60, fontsize=9)
        open_frame(axes)
    panels[0].set_title(title, color=INK, weight="bold")
    return figure


def _draw_rows(axes: Axes, sketch: Sketch) -> None:
    places = np.arange(len(sketch.words))
    axes.plot(places, sketch.positions[0], color=FAMILY_COLOURS[0], linewidth=2, label="position")
    if sketch.in_part_b.any():
        block: Sequence[int] = sketch.positions[1].tolist()
        axes.plot(places, block, color=FAMILY_COLOURS[1], linewidth=2, label="block position")
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xticks([])
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    open_frame(axes)
