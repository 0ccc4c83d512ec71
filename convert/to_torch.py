"""Model directories back to PyTorch's files: ``python -m convert.to_torch SRC DST``."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

if __name__ == "__main__":  # conversion computes nothing on an accelerator
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

from convert import adapters
from convert.checkpoint import way_back
from convert.engine import to_theirs
from convert.families import LAYOUTS, Layout
from convert.generation import released_generation_config
from convert.plan import DTYPES, Report, param_shapes
from convert.progress import byte_progress
from convert.shards import ShardPlan, plan_shards, write_at, write_headers
from convert.store import ParamsReader, lead_rows
from convert.table import Rule
from convert.tensors import BFLOAT16
from convert.workers import chunk_bytes, parse_bytes, whole_or_nothing
from glm_jax import command_line
from glm_jax.ckpts.model_dir import load_config, load_generation
from glm_jax.config import GLMConfig
from glm_jax.errors import UserError

# Without a layer number in it a name stands before or behind the layers: embeddings and the rest.
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes a model directory (converted or trained here), or an adapter, as PyTorch files.

    DST gets config.json, .safetensors shards with their index, and the tokenizer's files, and loads
    in the released code (original) or as Transformers' GlmForCausalLM (transformers).

    Example: python -m convert.to_torch ckpt/glm-4-9b out --layout transformers
    """

    src: Annotated[Path, tyro.conf.Positional]
    """Model directory."""
    dst: Annotated[Path, tyro.conf.Positional]
    """Folder to write."""
    layout: Literal["same", "original", "transformers"] = "same"
    """Names and config of the released code or of Transformers; by default those it came with."""
    shard_size: str = "5GB"
    """The largest weight file."""
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    """Type of the weights; by default as they are."""
    host_memory: str = "4GB"
    """Bound on resident memory."""
    base: Path | None = None
    """For a LoRA adapter that does not say it: the model it belongs to."""
    overwrite: bool = False
    """Replace DST if it exists."""


def export(
    src: str | Path,
    dst: str | Path,
    *,
    layout: str = "same",
    shard_size: int = 5_000_000_000,
    dtype: str | None = None,
    host_memory: int = 4_000_000_000,
    base: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> str:
    """Writes the PyTorch files of a model directory or adapter; returns the layout's name.

    Raises:
      UserError: SRC is no model directory, the layout cannot hold it, or DST cannot be written.
    """
    src, dst = Path(src), Path(dst)
    if adapters.is_ours(src):
        adapters.to_torch(src, dst, base=base, layout=layout, overwrite=overwrite)
        return "adapter"
    piece = chunk_bytes(host_memory)
    config = load_config(src)
    reader = ParamsReader(src)
    shapes = param_shapes(config)
    check_shapes(src, shapes, reader)
    back = way_back(src)
    chosen = _layout(config, back, layout)
    hf = _hf_config(config, chosen)
    specs = {
        name: (shape, _type(name, reader.specs[name][1], dtype)) for name, shape in shapes.items()
    }
    rules = _rules(chosen, config, shapes, back)
    buffers = _buffers(chosen, config, back, specs["embedding"][1])
    plan = plan_shards(
        [(rule.theirs, rule.shape, specs[rule.names[0]][1]) for rule in rules]
        + [(name, x.shape, x.dtype) for name, x in buffers.items()],
        shard_size,
    )
    with whole_or_nothing(dst, overwrite, plan.num_bytes) as root:
        write_headers(root, plan)
        _write_weights(root, plan, rules, specs, reader, piece, progress)
        for name, x in buffers.items():
            write_at(root, plan.plots[name], 0, x)
        hf["torch_dtype"] = str(specs["embedding"][1])
        _write_small_files(root, src, hf, plan)
    return chosen.name


def check_shapes(src: Path, shapes: Mapping[str, tuple[int, ...]], reader: ParamsReader) -> None:
    """Raises a ``Report`` where the stored parameters are not those of the config."""
    problems = [f"missing: {name}" for name in shapes if name not in reader.specs]
    problems += [f"unexpected: {name}" for name in reader.specs if name not in shapes]
    for name, shape in shapes.items():
        have = reader.specs.get(name)
        if have is not None and have[0] != shape:
            problems.append(f"mis-shaped: {name} is {list(have[0])}, not {list(shape)}")
    if problems:
        raise Report(src / "params", problems)


def _type(name: str, stored: np.dtype, dtype: str | None) -> np.dtype:
    integers = name.endswith(("weight_q", "weight_scale"))
    return stored if dtype is None or integers else DTYPES[dtype]


def _layout(config: GLMConfig, back: Mapping[str, Any], wanted: str) -> Layout:
    came = back.get("layout")
    if wanted == "same" and came in LAYOUTS:
        return LAYOUTS[came]
    if wanted == "transformers":
        return LAYOUTS["transformers"]
    if config.position == "learned":
        return LAYOUTS["glm"]
    chatglm = config.rope_2d or config.residual_scale is not None
    return LAYOUTS["chatglm" if chatglm else "chatglm2"]


def _hf_config(config: GLMConfig, layout: Layout) -> dict[str, Any]:
    if layout.name == "transformers" and config.quantization != "none":
        raise UserError("the transformers layout holds no integer weights; convert without "
                        "--keep-quantized first, or use --layout original")  # fmt: skip
    try:
        hf = config.to_hf("transformers" if layout.name == "transformers" else "original")
    except ValueError as error:
        raise UserError(f"--layout {layout.name}: {error}") from None
    if config.quantization != "none":
        hf["quantization_bit"] = int(config.quantization.removeprefix("int"))
    if config.num_labels:
        hf.setdefault("num_labels", config.num_labels)
    return hf


def _rules(layout: Layout, config, shapes, back: Mapping[str, Any]) -> list[Rule]:
    same = back.get("layout") == layout.name
    prefix = back["prefix"] if same else layout.body if layout.name == "transformers" else ""
    rules = layout.rules(config, shapes, prefix)
    kept = [
        rule
        for rule in rules
        if not rule.alias
        or (rule.theirs in back["aliases"] if same else layout.name != "transformers")
    ]
    return sorted(kept, key=lambda rule: _order(rule))


def _order(rule: Rule) -> tuple[int, int]:
    if rule.layer is not None:
        return 1, rule.layer
    first = rule.names[0].startswith(("embedding", "positions")) and not rule.alias
    return (0 if first else 2), 0


def _buffers(layout: Layout, config: GLMConfig, back, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Rotary frequencies, which released code keeps beside the weights and reads on loading."""
    if back.get("layout") == layout.name:
        return {name: _decoded(entry) for name, entry in back["buffers"].items()}
    freqs = 1.0 / config.rope_theta ** (
        np.arange(0, config.rope_dim, 2, dtype=np.float32) / max(config.rope_dim, 1)
    )
    if layout.name == "chatglm2":
        base = 1.0 / 10_000.0 ** (np.arange(0, config.rope_dim, 2) / config.rope_dim)
        return {"transformer.rotary_pos_emb.inv_freq": base.astype(dtype)}
    if layout.name == "chatglm":
        name = "transformer.layers.{}.attention.rotary_emb.inv_freq"
        return {name.format(i): freqs.astype(dtype) for i in range(config.num_layers)}
    return {}


def _decoded(entry: Mapping[str, Any]) -> np.ndarray:
    dtype = BFLOAT16 if entry["dtype"] == "bfloat16" else np.dtype(entry["dtype"])
    return np.frombuffer(base64.b64decode(entry["data"]), dtype).reshape(entry["shape"])


def _write_weights(root, plan: ShardPlan, rules, specs, reader, piece: int, progress: bool) -> None:
    lead = {name: lead_rows(name, *spec, piece) for name, spec in specs.items()}
    total = sum(plan.plots[rule.theirs].num_bytes for rule in rules)
    with byte_progress("exporting", total, progress) as advance:

        def write(rule: Rule, start: int, block: np.ndarray) -> None:
            write_at(root, plan.plots[rule.theirs], start, block)
            advance(block.nbytes)

        dtype_of = lambda rule: plan.plots[rule.theirs].dtype
        to_theirs(rules, reader.read, lead, dtype_of, write)


def _write_small_files(root: Path, src: Path, hf: Mapping[str, Any], plan: ShardPlan) -> None:
    write = lambda name, content: (root / name).write_text(
        json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
    write("config.json", hf)
    if plan.index is not None:
        write("model.safetensors.index.json", plan.index)
    generation = released_generation_config(load_generation(src))
    if generation is not None:
        write("generation_config.json", generation)
    if (src / "tokenizer").is_dir():
        for path in sorted((src / "tokenizer").iterdir()):
            shutil.copyfile(path, root / path.name)


def main(args: Args) -> None:
    layout = export(
        args.src,
        args.dst,
        layout=args.layout,
        shard_size=parse_bytes(args.shard_size, "--shard-size"),
        dtype=None if args.dtype == "stored" else args.dtype,
        host_memory=parse_bytes(args.host_memory, "--host-memory"),
        base=args.base,
        overwrite=args.overwrite,
        progress=True,
    )
    if layout == "adapter":
        print(f"{args.dst}: written, as the released code or PEFT loads it")
        return
    files = sum(1 for _ in args.dst.glob("*.safetensors"))
    print(f"{args.dst}: {layout} layout, {files} weight file{'s' if files != 1 else ''}")


if __name__ == "__main__":
    command_line.run(
        lambda: main(command_line.parse(Args, "python -m convert.to_torch", sys.argv[1:]))
    )
