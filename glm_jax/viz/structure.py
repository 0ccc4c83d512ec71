"""What a model is made of: its layer as a diagram, its sizes as bars; all read off the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from glm_jax.config import GLMConfig
from glm_jax.nn import GLM, KVCache
from glm_jax.viz.style import FAINT, INK, PART_A, PART_B, PAST, bare, new_figure, open_frame

_NORM, _TABLE, _LAYER = "#f2e3b3", "#cfd8e3", "#f6f6f4"
_PART_COLOURS = {
    "embedding": _TABLE, "positions": "#9fb3c8", "attention": PART_A, "mlp": PART_B,
    "head": PAST, "norms": _NORM,
}  # fmt: skip
_ATTENTION_HEIGHT = 3.6
_NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
_MLPS = {"gelu": "GELU (erf)", "gelu_tanh": "GELU (tanh)", "swiglu": "SwiGLU"}


def describe(config: GLMConfig) -> dict[str, str]:
    """The words of the diagram: part -> what the config says of it."""
    heads = f"{config.num_heads} heads of {config.head_dim}"
    shared = config.num_kv_heads < config.num_heads
    groups = f", {config.num_kv_heads} for k, v" if shared else ""
    width = f"{config.embed_dim:,} → {'2 × ' if config.gated_mlp else ''}{config.mlp_dim:,} → "
    see = "Part A both ways" if config.prefix_lm else "causal"
    biases = {
        (True, True): "all biased",
        (True, False): "q, k, v biased",
        (False, False): "no bias",
    }
    return {
        "embedding": f"word embedding  {config.vocab_size:,} × {config.embed_dim:,}",
        "positions": _positions(config),
        "norm": _NORMS[config.norm],
        "attention": f"{heads}{groups}\n{see}, {biases[config.qkv_bias, config.linear_bias]}",
        "mlp": f"{_MLPS[config.activation]}\n{width}{config.embed_dim:,}",
        "residual": "" if config.residual_scale is None else f"× {config.residual_scale:.2f}",
        "layers": f"{config.num_layers} layers",
        "head": "head = word embedding" if config.tied_head else "head of its own",
    }


def part_sizes(config: GLMConfig) -> dict[str, int]:
    """Parameters of each part of the network, counted on its abstract tree."""
    model = jax.eval_shape(lambda key: GLM(config, key), jax.random.key(0))
    sizes = dict.fromkeys(_PART_COLOURS, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        part = next((p for p in ("positions", "embedding", "head") if name.startswith(p)), None)
        part = part or ("norms" if "norm" in name else "mlp" if "mlp" in name else "attention")
        sizes[part] += int(np.prod(leaf.shape))
    return sizes


def cache_bytes(config: GLMConfig, tokens: int = 1, dtype=jnp.bfloat16) -> int:
    """What the keys and values of one row of tokens need."""
    cache = jax.eval_shape(lambda: KVCache.zeros(config, 1, tokens, dtype))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def draw_blocks(configs: Mapping[str, GLMConfig]) -> Figure:
    """Each model from its words (below) to its head (above), one layer drawn out."""
    figure = new_figure(3.6 * len(configs), 8.0)
    panels = figure.subplots(1, len(configs), squeeze=False)[0]
    for axes, (title, config) in zip(panels, configs.items(), strict=True):
        _draw_block(axes, config)
        axes.set_title(title, color=INK, weight="bold", fontsize=13)
    return figure


def draw_sizes(configs: Mapping[str, GLMConfig]) -> Figure:
    """Where the parameters are, and what a conversation costs in keys and values."""
    figure = new_figure(11.5, 0.55 * len(configs) + 1.8)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1), sharey=True)
    sizes = [part_sizes(config) for config in configs.values()]
    places, starts = np.arange(len(configs)), np.zeros(len(configs))
    for part, colour in _PART_COLOURS.items():
        widths = np.array([size[part] / 1e9 for size in sizes])
        if widths.max() > 0.005:
            left.barh(places, widths, left=starts, color=colour, label=part, height=0.62)
        starts += widths
    for y, total in zip(places, starts, strict=True):
        left.text(total, y, f" {total:.2f}", va="center", color=INK, fontsize=9)
    left.set(xlabel="billion parameters", xlim=(0, starts.max() * 1.1))
    left.set_yticks(places, list(configs))
    left.legend(frameon=False, ncol=6, loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    cache = np.array([cache_bytes(config) / 1024 for config in configs.values()])
    right.barh(places, cache, color=PART_A, height=0.62)
    for y, size in zip(places, cache, strict=True):
        right.text(size, y, f" {size:,.0f}", va="center", color=INK, fontsize=9)
    right.set(xlabel="KiB of keys and values per token, bfloat16", xlim=(0, cache.max() * 1.15))
    for axes in (left, right):
        open_frame(axes)
    left.invert_yaxis()
    return figure


def _positions(config: GLMConfig) -> str:
    if config.position == "learned":
        return f"two learned tables\n{config.max_seq_len + 1:,} × {config.embed_dim:,} each"
    kind = "2-D rotary" if config.rope_2d else "rotary"
    pairs = "(0, 1), (2, 3) .." if config.rope_interleaved else "(i, i + n/2)"
    share = "all" if config.rope_fraction == 1 else f"{config.rope_fraction:g}"
    return f"{kind}, {share} of a head, base {config.rope_theta:,.0f}\npairs {pairs}"


def _draw_block(axes: Axes, config: GLMConfig) -> None:
    """Coordinates: 10 wide, the stream goes up at x = 5, the residual at x = 0.9."""
    bare(axes)
    axes.set_xlim(0, 10)
    axes.set_ylim(0.2, 20.6)
    said = describe(config)
    _box(axes, 0.4, said["embedding"], 1.1, _TABLE)
    rotary = config.position == "rotary"
    if not rotary:
        _plus(axes, 1.95)
        _box(axes, 2.4, said["positions"], 1.5, _PART_COLOURS["positions"])
    frame = FancyBboxPatch((0.25, 4.45), 9.5, 12.85, boxstyle="round,pad=0.1,rounding_size=0.35")
    frame.set(facecolor=_LAYER, edgecolor=FAINT, linestyle="--")
    axes.add_patch(frame)
    bold = {"ha": "right", "va": "center", "color": INK, "fontsize": 10, "weight": "bold"}
    axes.text(9.6, 16.85, said["layers"], **bold)
    _arrow(axes, 1.5 if rotary else 3.9, 5.15)
    lines = [said["attention"], said["positions"]] if rotary else [said["attention"]]
    attention = _sublayer(axes, 4.9, said, "\n".join(lines), _ATTENTION_HEIGHT, PART_A, 0.39)
    _heads(axes, attention + _ATTENTION_HEIGHT - 0.8, config)
    _sublayer(axes, 11.4, said, said["mlp"], 2.4, PART_B)
    _arrow(axes, 16.5, 17.8)
    _box(axes, 17.8, said["norm"], 0.8, _NORM)
    _arrow(axes, 18.6, 19.0)
    _box(axes, 19.0, said["head"], 1.1, PAST)


def _sublayer(
    axes: Axes,
    y: float,
    said: Mapping[str, str],
    text: str,
    height: float,
    colour: str,
    text_at: float = 0.5,
) -> float:
    """Norm, attention or MLP, sum. The residual leaves before or behind the norm.

    Returns:
      where the box of the attention or MLP begins.
    """
    begin, total = y + 1.55, y + height + 2.25
    before_norm, behind_norm = y + 0.02, y + 1.2
    leaves = before_norm if not said["residual"] else behind_norm
    line = {"color": INK, "linewidth": 1.3, "zorder": 1}
    axes.plot([5, 5], [y - 0.1, y + 0.25], **line)
    _box(axes, y + 0.25, said["norm"], 0.8, _NORM)
    _arrow(axes, y + 1.05, begin)
    _box(axes, begin, text, height, colour, text_at)
    _arrow(axes, begin + height, total - 0.25)
    axes.plot([5, 0.9, 0.9, 5], [leaves, leaves, total, total], **line)
    _plus(axes, total)
    axes.plot([5, 5], [total, total + 0.6], **line)
    if said["residual"]:
        box = {"facecolor": "white", "edgecolor": INK, "boxstyle": "round,pad=0.2"}
        style = {"ha": "center", "va": "center", "fontsize": 9, "rotation": 90, "color": INK}
        axes.text(0.9, (leaves + total) / 2, said["residual"], bbox=box, **style)
    return begin


def _heads(axes: Axes, y: float, config: GLMConfig) -> None:
    """A tick for every query head, and below one for every head of keys and values."""
    left, width = 2.1, 6.6
    for row, count, colour in ((0.32, config.num_heads, INK), (0, config.num_kv_heads, "#fbf7f0")):
        step = width / count
        for i in range(count):
            cell = Rectangle((left + i * step + step * 0.08, y + row), step * 0.84, 0.24)
            cell.set(facecolor=colour, edgecolor="none", zorder=4, snap=False)
            axes.add_patch(cell)


def _box(axes: Axes, y: float, text: str, height: float, colour: str, text_at: float = 0.5) -> None:
    shape = FancyBboxPatch((1.7, y), 7.4, height, boxstyle="round,pad=0,rounding_size=0.25")
    shape.set(facecolor=colour, edgecolor="white", zorder=3)
    axes.add_patch(shape)
    place = 5.4, y + height * text_at
    axes.text(*place, text, ha="center", va="center", fontsize=9, color=INK, zorder=5)


def _arrow(axes: Axes, start: float, end: float) -> None:
    style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (5, end), (5, start), arrowprops=style, zorder=2)


def _plus(axes: Axes, y: float) -> None:
    axes.plot(5, y, "o", markersize=13, color="white", markeredgecolor=INK, zorder=5)
    axes.text(5, y, "+", ha="center", va="center", fontsize=12, color=INK, zorder=6)


def table(configs: Mapping[str, GLMConfig], parts: Sequence[str] = ()) -> str:
    """The same words as a Markdown table, a column for each model."""
    said = {title: describe(config) for title, config in configs.items()}
    parts = parts or list(next(iter(said.values())))
    rows = [["", *said], ["---"] * (len(said) + 1)]
    rows += [[part, *(s[part].replace("\n", "; ") or "x + f(norm(x))" for s in said.values())]
             for part in parts]  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
