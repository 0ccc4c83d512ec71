"""Small random checkpoints in the released formats, and comparing them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from convert.checkpoint import open_released
from convert.families import LAYOUTS
from convert.pickle_writer import write_pickled
from convert.plan import param_shapes
from convert.shards import plan_shards, write_at, write_headers
from convert.tensors import read_all
from glm_jax.config import GLMConfig, preset

SMALL = {"num_layers": 2, "embed_dim": 16, "mlp_dim": 24, "num_heads": 4, "head_dim": 4}
FAMILIES = {
    "glm-10b": {"num_kv_heads": 4, "vocab_size": 40, "mlp_dim": 64, "max_seq_len": 12},
    "chatglm-6b": {"num_kv_heads": 4, "vocab_size": 40, "mlp_dim": 64},
    "chatglm2-6b": {"num_kv_heads": 2, "vocab_size": 48},
    "chatglm3-6b-128k": {"num_kv_heads": 1, "vocab_size": 48},
    "glm-4-9b-chat": {"num_kv_heads": 2, "vocab_size": 56},
}
LAYOUT_OF = {"glm-10b": "glm", "chatglm-6b": "chatglm"}


def small(family: str) -> GLMConfig:
    return preset(family).replace(**{**SMALL, **FAMILIES[family]})


def layout_of(family: str) -> str:
    return LAYOUT_OF.get(family, "chatglm2")


def random_tensors(config: GLMConfig, layout: str, seed: int = 0, dtype=np.float32):
    """Released names and shapes with random numbers; a tied head is there twice."""
    rng = np.random.default_rng(seed)
    prefix = "model." if layout == "transformers" else ""
    tensors: dict[str, np.ndarray] = {}
    for rule in LAYOUTS[layout].rules(config, param_shapes(config), prefix):
        if rule.alias:
            tensors[rule.theirs] = tensors[_embedding(layout, prefix)]
        else:
            tensors[rule.theirs] = rng.standard_normal(rule.shape, np.float32).astype(dtype)
    return tensors


def _embedding(layout: str, prefix: str) -> str:
    return prefix + next(e.theirs for e in LAYOUTS[layout].entries if e.ours == ("embedding",))


def write_config(folder: Path, config: GLMConfig, layout: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    hf = config.to_hf("transformers" if layout == "transformers" else "original")
    (folder / "config.json").write_text(json.dumps(hf))


def write_safetensors(folder: Path, tensors, shard_size: int = 1 << 30) -> None:
    plan = plan_shards([(name, x.shape, x.dtype) for name, x in tensors.items()], shard_size)
    write_headers(folder, plan)
    for name, x in tensors.items():
        write_at(folder, plan.plots[name], 0, x)
    if plan.index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(plan.index))


def write_bins(folder: Path, tensors, count: int = 1) -> None:
    names = list(tensors)
    if count == 1:
        write_pickled(folder / "pytorch_model.bin", tensors)
        return
    where = {}
    for i in range(count):
        file = f"pytorch_model-{i + 1:05d}-of-{count:05d}.bin"
        part = {name: tensors[name] for name in names[i::count]}
        write_pickled(folder / file, part)
        where |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))


def make_released(folder: Path, family: str, layout: str | None = None, **how) -> GLMConfig:
    """A random checkpoint as it would be downloaded."""
    config, layout = small(family), layout or layout_of(family)
    write_config(folder, config, layout)
    write_safetensors(folder, random_tensors(config, layout, **how))
    return config


def assert_same_tensors(a: Path, b: Path) -> None:
    """Names, shapes, types and bits."""
    left, right = open_released(a).tensors, open_released(b).tensors
    assert set(left) == set(right)
    for name, x in left.items():
        assert (x.shape, x.dtype) == (right[name].shape, right[name].dtype), name
        assert read_all(x).tobytes() == read_all(right[name]).tobytes(), name
