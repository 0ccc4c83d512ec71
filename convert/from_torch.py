"""Released PyTorch checkpoints to model directories: ``python -m convert.from_torch SRC DST``."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
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
from convert.checkpoint import RELEASED_FILE, Released, open_released
from convert.engine import to_ours
from convert.generation import generation_settings
from convert.plan import Plan, make_plan
from convert.progress import byte_progress
from convert.store import ParamsWriter
from convert.tensors import Tensor, num_bytes, read_all
from convert.workers import chunk_bytes, parse_bytes, whole_or_nothing
from glm_jax import command_line
from glm_jax.config import GLMConfig, num_params
from glm_jax.errors import UserError
from glm_jax.peft import save_adapter
from glm_jax.text import load_tokenizer

PREFIX_FOLDER = "prefix"
TOKENIZER_FILES = (
    "tokenizer*", "vocab*", "merges.txt", "*.model", "cog-pretrain*", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
MAX_BUFFER = 1 << 16


@dataclasses.dataclass(frozen=True)
class Args:
    """Turns a released GLM, ChatGLM, ChatGLM2, ChatGLM3 or GLM-4 text checkpoint, a fine-tune of
    one, a P-Tuning v2 prefix or a PEFT LoRA adapter into our format.

    SRC is the folder that was downloaded: config.json, weights as .safetensors or .bin in any
    number of shards (or THUDM's mp_rank_XX_model_states.pt), tokenizer files. The family is found
    out and said. DST appears whole or not at all. No PyTorch is needed, and nothing in SRC is run.

    Example: python -m convert.from_torch THUDM/chatglm3-6b ckpt/chatglm3-6b --dtype bfloat16
    """

    src: Annotated[Path, tyro.conf.Positional]
    """Folder with the released files, or one weight file."""
    dst: Annotated[Path, tyro.conf.Positional]
    """Folder to write."""
    family: str = "auto"
    """Released family whose tokenizer and prompts to use, where the files do not tell."""
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    """Type of the weights; by default each keeps its own."""
    keep_quantized: bool = False
    """Keep int8 and int4 weights as integers for inference, rather than as floats."""
    host_memory: str = "4GB"
    """Bound on resident memory."""
    base: Path | None = None
    """For a LoRA adapter: the model it belongs to, as a folder of ours or a released one."""
    overwrite: bool = False
    """Replace DST if it exists."""


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    family: str = "auto",
    dtype: str | None = None,
    keep_quantized: bool = False,
    host_memory: int = 4_000_000_000,
    base: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Plan | None:
    """Converts a checkpoint (returns what was done) or an adapter (returns None).

    Args:
      dtype: float32, bfloat16 or float16; as stored by default.
      host_memory: bound on resident memory, in bytes.

    Raises:
      UserError: anything about SRC or DST that is wrong, in one line or (``Report``) one line each.
    """
    src, dst = Path(src), Path(dst)
    if adapters.is_adapter(src):
        adapters.from_torch(src, dst, base=base, overwrite=overwrite)
        return None
    piece = chunk_bytes(host_memory)
    released = open_released(src)
    if adapters.only_prefix(released.tensors):
        adapters.from_torch(src, dst, base=base, overwrite=overwrite)
        return None
    released, prefix = adapters.without_prefix(released)
    plan = make_plan(released, family=family, dtype=dtype, keep_quantized=keep_quantized)
    plan = dataclasses.replace(plan, config=_with_command_tokens(plan, released.folder))
    needed = sum(int(np.prod(shape)) * kind.itemsize for shape, kind in plan.targets.values())
    with whole_or_nothing(dst, overwrite, needed) as root:
        _write_params(root, plan, piece, progress)
        _write_small_files(root, plan, released)
        if prefix is not None:
            save_adapter(root / PREFIX_FOLDER, prefix)
            plan.notes.append(f"its P-Tuning v2 prefix is the adapter {dst / PREFIX_FOLDER}")
    return plan


def _with_command_tokens(plan: Plan, folder: Path) -> GLMConfig:
    """The config with the ids that the tokenizer has, where its vocabulary's size is no known one.

    A fine-tune may have grown or cut its embedding, by which the released ids are recognised.
    """
    if plan.config.special.sop is not None:
        return plan.config
    try:
        special = load_tokenizer(folder, plan.family).special
    except UserError:  # no tokenizer files, or not this family's
        return plan.config
    stops = plan.config.stop_ids or special.require("eop")
    return plan.config.replace(special=special, stop_ids=stops)


def _write_params(root: Path, plan: Plan, piece: int, progress: bool) -> None:
    writer = ParamsWriter(root, plan.targets, piece)
    rules = [rule for rule in plan.rules if not rule.alias]
    total = sum(num_bytes(plan.sources[rule.theirs]) for rule in rules)
    with byte_progress("converting", total, progress) as advance:
        to_ours(rules, plan.sources, writer, advance)
    sums = json.dumps(writer.checksums(), indent=1)
    (root / "checksums.json").write_text(sums + "\n")


def _write_small_files(root: Path, plan: Plan, released: Released) -> None:
    settings = generation_settings(plan.family, plan.config, released.folder)
    (root / "config.json").write_text(plan.config.to_json())
    (root / "generation.json").write_text(json.dumps(settings, indent=2) + "\n")
    (root / RELEASED_FILE).write_text(json.dumps(_way_back(plan), indent=1) + "\n")
    files = {path for pattern in TOKENIZER_FILES for path in released.folder.glob(pattern)}
    files = {path for path in files if path.is_file() and path.suffix not in (".bin", ".py")}
    if files:
        (root / "tokenizer").mkdir()
        for path in sorted(files):
            shutil.copyfile(path, root / "tokenizer" / path.name)


def _way_back(plan: Plan) -> dict[str, Any]:
    """What ``to_torch`` needs to give back the very tensors that were read."""
    return {
        "layout": plan.layout.name,
        "prefix": plan.prefix,
        "aliases": sorted(rule.theirs for rule in plan.rules if rule.alias),
        "buffers": {
            name: _encoded(x) for name, x in plan.buffers.items() if num_bytes(x) <= MAX_BUFFER
        },
    }


def _encoded(x: Tensor) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(read_all(x)).tobytes()).decode()
    return {"dtype": str(x.dtype), "shape": list(x.shape), "data": data}


def summary(plan: Plan, released: Released) -> str:
    """One line on what was found."""
    dtypes = sorted({str(plan.sources[rule.theirs].dtype) for rule in plan.rules})
    count = len(released.files)
    return (
        f"{plan.family}, in the layout of {plan.layout.title}: {plan.config.num_layers} layers, "
        f"{num_params(plan.config) / 1e9:.3f}B parameters, {', '.join(dtypes)}, "
        f"{count} file{'s' if count > 1 else ''}"
    )


def main(args: Args) -> None:
    memory = parse_bytes(args.host_memory, "--host-memory")
    kinds: Mapping[str, str | None] = {"stored": None}
    plan = convert(
        args.src,
        args.dst,
        family=args.family,
        dtype=kinds.get(args.dtype, args.dtype),
        keep_quantized=args.keep_quantized,
        host_memory=memory,
        base=args.base,
        overwrite=args.overwrite,
        progress=True,
    )
    if plan is None:
        print(f"{args.dst}: an adapter; glm_jax.load(..., adapter={str(args.dst)!r}) puts it on")
        return
    print(f"{args.src}: {summary(plan, open_released(args.src))}")
    for note in plan.notes:
        print(f"  {note}")
    print(f"{args.dst}: written; python -m convert.verify {args.src} {args.dst} compares them")


if __name__ == "__main__":
    command_line.run(
        lambda: main(command_line.parse(Args, "python -m convert.from_torch", sys.argv[1:]))
    )
