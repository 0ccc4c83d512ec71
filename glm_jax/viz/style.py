"""Colours and figures that all pictures share."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, HIDDEN = "#2b2d42", "#8d99ae", "#f4f4f2"
PART_A, PART_B, PART_B_BACK, PAST = "#8fb8de", "#e07a5f", "#f3c5b5", "#81b29a"
FAMILY_COLOURS = ("#2a6f97", "#c8553d", "#588157", "#8a5a83", "#e09f3e", "#6c757d")


def new_figure(width: float, height: float) -> Figure:
    """A figure that belongs to no window or backend: a notebook shows it, ``savefig`` writes it."""
    return Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")


def bare(axes: Axes) -> None:
    """Only what is drawn: no frame, no ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def open_frame(axes: Axes) -> None:
    """A plot's frame: left and bottom only, a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
