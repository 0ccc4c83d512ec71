"""THUDM's GLM tensor names for our parameters, both ways: enough for the golden tests.

The converter proper walks a table per family; this is its smallest ancestor.
"""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from glm_jax.config import GLMConfig
from glm_jax.nn import GLM

GOLDEN = pathlib.Path(__file__).parent / "golden"

LAYER_NAMES = {
    "input_layernorm": "attention_norm",
    "attention.dense": "attention.o_proj",
    "post_attention_layernorm": "mlp_norm",
    "mlp.dense_h_to_4h": "mlp.up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}


class Golden(NamedTuple):
    config: GLMConfig
    model: GLM
    weights: dict[str, np.ndarray]
    cases: dict[str, np.ndarray]


def load_glm(case: str) -> Golden:
    folder = GOLDEN / "glm-10b" / case
    config = GLMConfig.from_hf(json.loads((folder / "config.json").read_text()))
    weights = {
        k.removeprefix("glm."): v for k, v in load_file(folder / "model.safetensors").items()
    }
    model = jax.eval_shape(lambda key: GLM(config, key), jax.random.key(0))
    return Golden(
        config, fill(model, config, weights), weights, load_file(folder / "cases.safetensors")
    )


def fill(model: GLM, config: GLMConfig, weights: dict[str, np.ndarray]) -> GLM:
    """The model with released weights in place of its (abstract) own."""
    ours = dict(_ours(config, weights))

    def value(path, leaf):
        name = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        return jnp.asarray(ours.pop(name).reshape(leaf.shape))

    filled = jax.tree_util.tree_map_with_path(value, model)
    assert not ours, f"not used: {sorted(ours)}"
    return filled


def _ours(config, weights):
    yield "embedding", weights["word_embeddings.weight"]
    yield "positions.position", weights["transformer.position_embeddings.weight"]
    yield "positions.block_position", weights["transformer.block_position_embeddings.weight"]
    for kind in ("weight", "bias"):
        yield f"final_norm.{kind}", weights[f"transformer.final_layernorm.{kind}"]

        def stacked(name, kind=kind):
            rows = range(config.num_layers)
            return np.stack([weights[f"transformer.layers.{i}.{name}.{kind}"] for i in rows])

        for theirs, ours in LAYER_NAMES.items():
            yield f"layers.{ours}.{kind}", stacked(theirs)
        thirds = np.split(stacked("attention.query_key_value"), 3, axis=1)
        for letter, third in zip("qkv", thirds, strict=True):
            yield f"layers.attention.{letter}_proj.{kind}", third


def to_released(model: GLM, config: GLMConfig) -> dict[str, np.ndarray]:
    """Any GLM-shaped tree (weights or gradients) under the released names and shapes."""
    leaves = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model)
    }
    d = config.embed_dim
    out = {
        "word_embeddings.weight": leaves["embedding"],
        "transformer.position_embeddings.weight": leaves["positions.position"],
        "transformer.block_position_embeddings.weight": leaves["positions.block_position"],
    }
    for kind in ("weight", "bias"):
        out[f"transformer.final_layernorm.{kind}"] = leaves[f"final_norm.{kind}"]
        flat = (d,) if kind == "weight" else ()
        for i in range(config.num_layers):
            prefix = f"transformer.layers.{i}"
            for theirs, ours in LAYER_NAMES.items():
                x = leaves[f"layers.{ours}.{kind}"][i]
                is_matrix = kind == "weight" and x.ndim > 1
                out[f"{prefix}.{theirs}.{kind}"] = x.reshape(x.shape[0], -1) if is_matrix else x
            parts = [
                leaves[f"layers.attention.{c}_proj.{kind}"][i].reshape(-1, *flat) for c in "qkv"
            ]
            out[f"{prefix}.attention.query_key_value.{kind}"] = np.concatenate(parts)
    return out


def ranges_of_mask(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns worth keeping of a [T, T] 0/1 mask, and their key ranges once the rest is gone.

    The released layouts pad inside the row, between context and Part B; ours never do.
    """
    kept = np.flatnonzero(np.diag(mask))
    small = mask[np.ix_(kept, kept)].astype(bool)
    start = small.argmax(axis=1)
    end = start + small.sum(axis=1)
    columns = np.arange(len(kept))
    assert np.array_equal(small, (columns >= start[:, None]) & (columns < end[:, None]))
    return kept, start.astype(np.int32), end.astype(np.int32)
