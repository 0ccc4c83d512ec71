"""Walks a table in either direction, piece by piece and in a few threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from convert.families import LAYOUTS
from convert.store import ParamsWriter
from convert.table import Move, Part, Rule
from convert.tensors import Tensor
from convert.workers import run_all
from glm_jax.ckpts.trees import flat_paths, to_plain
from glm_jax.config import GLMConfig
from glm_jax.errors import UserError


def to_ours(
    rules: Sequence[Rule],
    sources: Mapping[str, Tensor],
    writer: ParamsWriter,
    advance: Callable[[int], None],
) -> None:
    """Reads every released tensor and writes the parts of ours that it holds."""

    def one(item: tuple[Rule, Move]) -> None:
        rule, move = item
        block = sources[rule.theirs].rows(move.start, move.stop)
        for part, x in zip(move.parts, rule.views(block, move), strict=True):
            writer.write(part, cast(x, writer.targets[part.name][1], rule.theirs))
        advance(block.nbytes)

    run_all(one, ((rule, move) for rule in rules for move in rule.moves(writer.lead)))


def to_theirs(
    rules: Sequence[Rule],
    read: Callable[[Part], np.ndarray],
    lead: Mapping[str, int],
    dtype_of: Callable[[Rule], np.dtype],
    write: Callable[[Rule, int, np.ndarray], None],
) -> None:
    """Reads the parts of ours that every released tensor holds, and writes its rows.

    Args:
      lead: first-axis length of a piece of each of our parameters.
      write: takes a rule, the first row and the rows.
    """

    def one(item: tuple[Rule, Move]) -> None:
        rule, move = item
        block = np.empty((move.stop - move.start, *rule.shape[1:]), dtype_of(rule))
        for part, view in zip(move.parts, rule.views(block, move), strict=True):
            view[...] = cast(read(part), block.dtype, rule.theirs)
        write(rule, move.start, block)

    run_all(one, ((rule, move) for rule in rules for move in rule.moves(lead)))


def released_tree(tree: Any, config: GLMConfig, layout: str) -> dict[str, np.ndarray]:
    """A model, or a tree of its shape such as its gradients, under the released names and shapes.

    Args:
      layout: ``glm``, ``chatglm``, ``chatglm2`` or ``transformers``.
    """
    flat = {name: np.asarray(x) for name, x in flat_paths(to_plain(tree)).items()}
    shapes = {name: x.shape for name, x in flat.items()}
    chosen = LAYOUTS[layout]
    prefix = chosen.body if layout == "transformers" else ""
    rules = [rule for rule in chosen.rules(config, shapes, prefix) if not rule.alias]
    lead = {name: int(np.max(shape)) for name, shape in shapes.items()}
    out = {rule.theirs: np.empty(rule.shape, flat[rule.names[0]].dtype) for rule in rules}

    def read(part: Part) -> np.ndarray:
        x = flat[part.name] if part.layer is None else flat[part.name][part.layer]
        return x[part.start : part.stop]

    def write(rule: Rule, start: int, block: np.ndarray) -> None:
        out[rule.theirs][start : start + len(block)] = block

    to_theirs(rules, read, lead, lambda rule: out[rule.theirs].dtype, write)
    return out


def cast(x: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Another type, but never an infinity that was a number.

    Raises:
      UserError: float16 cannot hold the values.
    """
    if x.dtype == dtype:
        return x
    with np.errstate(over="ignore"):
        y = x.astype(dtype)
    if dtype == np.float16 and not np.isfinite(y).all() and np.isfinite(x).all():
        raise UserError(f"{name} has values beyond float16's 65504; use --dtype bfloat16")
    return y
