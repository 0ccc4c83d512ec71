"""Pytrees of modules and optimizer states as plain nested dicts, and back."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

_NAME_OF = {GetAttrKey: "name", DictKey: "key", SequenceKey: "idx", FlattenedIndexKey: "key"}


def key_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """A key path of ``jax.tree_util`` as plain strings."""
    return tuple(str(getattr(key, _NAME_OF[type(key)])) for key in path)


def _flat(tree: Any) -> tuple[list[tuple[tuple[str, ...], Any]], Any]:
    """((path, leaf), ...) and the structure; a Variable is named by its path alone."""
    is_variable = lambda x: isinstance(x, nnx.Variable)
    named, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)
    flat = []
    for path, leaf in named:
        flat += [(key_names(path), value) for value in jax.tree.leaves(leaf)]
    return flat, jax.tree.structure(tree)


def to_plain(tree: Any) -> dict[str, Any]:
    """``{"layers": {"mlp": {"up_proj": {"weight": array}}}}`` for a model, and alike for any tree.

    Only names and arrays are left, so what is written outlives the module system.
    """
    plain: dict[str, Any] = {}
    for names, leaf in _flat(tree)[0]:
        node = plain
        for name in names[:-1]:
            node = node.setdefault(name, {})
        node[names[-1]] = leaf
    return plain


def from_plain(plain: dict[str, Any], like: Any) -> Any:
    """Inverse of ``to_plain``; ``like`` gives the structure, arrays or not.

    Raises:
      KeyError: ``plain`` lacks a leaf.
    """
    flat, structure = _flat(like)
    leaves = []
    for names, _ in flat:
        node: Any = plain
        for name in names:
            node = node[name]
        leaves.append(node)
    return jax.tree.unflatten(structure, leaves)


def flat_paths(plain: Any) -> dict[str, Any]:
    """``{"layers.mlp.up_proj.weight": leaf}``."""
    if not isinstance(plain, dict):
        return {"": plain}
    return {
        f"{name}.{rest}".rstrip("."): leaf
        for name, node in plain.items()
        for rest, leaf in flat_paths(node).items()
    }


def differences(wanted: Any, found: Any, limit: int = 4) -> str:
    """What is missing, unexpected or of another shape in ``found``; empty when they agree.

    Args:
      wanted, found: nested dicts whose leaves have a ``shape``.
    """
    want, have = flat_paths(wanted), flat_paths(found)
    notes = [f"{name} is missing" for name in want if name not in have]
    notes += [f"{name} is not expected" for name in have if name not in want]
    notes += [
        f"{name} is {tuple(have[name].shape)}, not {tuple(want[name].shape)}"
        for name in want
        if name in have and tuple(have[name].shape) != tuple(want[name].shape)
    ]
    more = f" and {len(notes) - limit} more" if len(notes) > limit else ""
    return "; ".join(notes[:limit]) + more
