"""Pictures of a run: its loss curves, and what one packed batch looks like from inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from glm_jax.viz import seen
from glm_jax.viz.style import HIDDEN, PART_A, PART_B

OBJECTIVE_NAMES = {"mask": "[MASK]", "smask": "[sMASK]", "gmask": "[gMASK]"}
PART_NAMES = {"task": "answers", "general": "general text"}  # of fine-tuning
COLOURS = {"mask": "#2a6f97", "smask": "#c8553d", "gmask": "#588157"}
COLOURS |= {"task": COLOURS["mask"], "general": COLOURS["smask"]}


def read_log(path: str | Path) -> dict[str, list[dict[str, float]]]:
    """The entries of a run's log.jsonl by kind, ``train`` and ``heldout``."""
    entries: dict[str, list[dict[str, float]]] = {"train": [], "heldout": []}
    for line in Path(path).read_text().splitlines():
        entry = json.loads(line)
        entries[entry.pop("kind")].append(entry)
    return entries


def loss_curves(
    log: Mapping[str, list[dict[str, float]]],
    path: str | Path,
    names: Mapping[str, str] = OBJECTIVE_NAMES,
    title: str = "Blank-infilling loss",
) -> None:
    """Loss of each objective over the steps: smoothed lines, dots where held out.

    Args:
      names: what the log calls each, and how the picture shall.
    """
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, label in names.items():
        steps, losses = _series(log["train"], name)
        if len(steps):
            axes.plot(steps, losses, color=COLOURS[name], alpha=0.18, linewidth=0.8)
            axes.plot(steps, _smooth(losses), color=COLOURS[name], label=f"{label} training")
        steps, losses = _series(log["heldout"], name)
        if len(steps):
            axes.plot(steps, losses, "o", color=COLOURS[name], label=f"{label} held out")
    axes.set(xlabel="step", ylabel="nats per predicted token", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncol=2, frameon=False)
    _save(figure, path)


def packed_row(row: Mapping[str, np.ndarray], path: str | Path) -> None:
    """One row of a batch: who sees whom, and the two position rows beneath it.

    Args:
      row: k_start, k_end, objective [T] and positions [2, T].
    """
    figure, (mask, first, second) = plt.subplots(
        3, 1, figsize=(8, 10), height_ratios=(6, 1, 1), sharex=True, layout="constrained"
    )
    length = len(row["k_start"])
    keys = np.arange(length)
    in_b = row["positions"][1] > 0
    mask.imshow(
        np.where(seen(row["k_start"], row["k_end"]), np.where(in_b[:, None], 2, 1), 0),
        cmap=ListedColormap([HIDDEN, PART_A, PART_B]),
        vmin=0,
        vmax=2,
        aspect="auto",
        interpolation="nearest",
    )
    _outline(mask, row)
    mask.set(ylabel="query", title="One packed row: each example sees itself alone")
    figure.legend(
        handles=[
            Patch(color=PART_A, label="seen by Part A (both directions)"),
            Patch(color=PART_B, label="seen by Part B (Part A, its own past)"),
            Patch(facecolor=HIDDEN, edgecolor="#bbb", label="hidden"),
        ],
        loc="outside upper center",
        ncol=3,
        frameon=False,
    )
    for axes, values, name in (
        (first, row["positions"][0], "position"),
        (second, row["positions"][1], "block position"),
    ):
        axes.scatter(keys[~in_b], values[~in_b], s=4, color=PART_A, label="Part A")
        axes.scatter(keys[in_b], values[in_b], s=4, color=PART_B, label="Part B")
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
    second.set_xlabel("slot of the row (keys above)")
    _save(figure, path)


def fullest_row(batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The row that holds the most different objectives, and then the most examples."""
    rows = [
        {name: np.asarray(x[i]) for name, x in batch.items()}
        for batch in batches
        for i in range(len(batch["tokens"]))
    ]
    kinds = lambda row: len(set(row["objective"].tolist()) - {-1})
    return max(rows, key=lambda row: (kinds(row), len(np.unique(row["k_start"]))))


def _outline(axes, row: Mapping[str, np.ndarray]) -> None:
    """Names each example at its diagonal block."""
    for start in np.unique(row["k_start"][row["objective"] >= 0]):
        inside = np.flatnonzero((row["k_start"] == start) & (row["objective"] >= 0))
        name = list(OBJECTIVE_NAMES.values())[row["objective"][inside[0]]]
        axes.text(inside[-1] + 2, inside[0] + 2, name, fontsize=8, va="top")


def _series(entries: list[dict[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(e["step"], e[name]) for e in entries if name in e]
    steps, losses = zip(*found, strict=True) if found else ((), ())
    return np.array(steps), np.array(losses)


def _smooth(values: np.ndarray, half_life: float = 8.0) -> np.ndarray:
    out, keep = np.array(values, float), 0.5 ** (1 / half_life)
    for i in range(1, len(out)):
        out[i] = keep * out[i - 1] + (1 - keep) * values[i]
    return out


def _save(figure, path: str | Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
