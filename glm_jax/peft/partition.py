"""A model as two: what is trained, and the rest.

Each half has the structure of the whole with holes where the other has its weights, so that
``jax.grad`` and an optimizer see nothing but what they shall change. Integers and their scales can
only be in the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import jax

from glm_jax.ckpts.trees import key_names
from glm_jax.errors import UserError
from glm_jax.nn import GLM, cut_layers
from glm_jax.nn.params import Frozen, is_variable

Choice = Callable[[str], bool]
"""Says of a parameter's dotted path, such as ``layers.mlp.up_proj.weight``, whether it is meant."""


def partition(model: Any, trained: Choice) -> tuple[Any, Any]:
    """``(trained, rest)``; no array is copied."""

    def half(wanted: bool):
        def of(path: tuple[Any, ...], variable: Any) -> Any:
            mine = not isinstance(variable, Frozen) and trained(".".join(key_names(path)))
            return variable if mine == wanted else None

        return jax.tree_util.tree_map_with_path(of, model, is_leaf=is_variable)

    return half(True), half(False)


def combine(trained: Any, rest: Any) -> Any:
    """Inverse of ``partition``."""
    leaf = lambda x: x is None or is_variable(x)
    return jax.tree.map(lambda x, y: y if x is None else x, trained, rest, is_leaf=leaf)


class Freezing:
    """Which parameters stay as they are, from a comma-separated list of patterns.

    A pattern is a parameter's path or its beginning (``embedding``, ``layers.mlp``), may have
    ``*``, and may say which layers it means: ``layers.0-20``, ``layers.3.attention``.

    Raises:
      UserError: a layer that the model has not, or a pattern that means none of its parameters.
    """

    def __init__(self, patterns: str, model: GLM):
        words, paths = [word.strip() for word in patterns.split(",") if word.strip()], _paths(model)
        self._rules = [_rule(word, model.config.num_layers) for word in words]
        self.bounds = sorted({edge for first, last, _ in self._rules for edge in (first, last)})
        for word, (_, _, glob) in zip(words, self._rules, strict=True):
            if not any(_matches(path, glob) for path in paths):
                raise UserError(f"--freeze {word!r} means no parameter of this model")

    def cut(self, model: GLM) -> GLM:
        """The model with its layers in stacks that are frozen or trained as wholes."""
        return cut_layers(model, self.bounds)

    def trained(self, model: GLM) -> Choice:
        """For a model that ``cut`` gave."""
        firsts = [0]
        for size in model.stacks:
            firsts.append(firsts[-1] + size)

        def choose(path: str) -> bool:
            stack = re.match(r"layers\.(\d+)\.", path)
            first = firsts[int(stack[1])] if stack else 0
            plain = re.sub(r"^layers\.\d+\.", "layers.", path)
            inside = plain.startswith("layers.")
            return not any(
                _matches(plain, glob) and (not inside or a <= first < b)
                for a, b, glob in self._rules
            )

        return choose


def _rule(pattern: str, layers: int) -> tuple[int, int, str]:
    """(first layer, one past the last, glob on the path without layer numbers)."""
    found = re.fullmatch(r"layers\.(\d+)(?:-(\d+))?(\..+)?", pattern)
    if found is None:
        return 0, layers, pattern
    first = int(found[1])
    last = int(found[2]) if found[2] else first
    if not first <= last < layers:
        raise UserError(f"--freeze {pattern!r}: this model's layers are 0 to {layers - 1}")
    return first, last + 1, "layers" + (found[3] or "")


def _matches(path: str, glob: str) -> bool:
    return fnmatchcase(path, glob) or fnmatchcase(path, f"{glob}.*")


def _paths(model: GLM) -> list[str]:
    named, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_variable)
    return [".".join(key_names(path)) for path, _ in named]
