"""P-Tuning v2 prefixes and PEFT LoRA directories to our adapter format, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from convert import lora
from convert.checkpoint import Released, open_released, read_json
from convert.pickle_writer import write_pickled
from convert.plan import Report
from convert.tensors import is_float, read_all
from convert.workers import whole_or_nothing
from glm_jax.ckpts.model_dir import load_config
from glm_jax.ckpts.trees import flat_paths
from glm_jax.config import GLMConfig, preset
from glm_jax.errors import UserError
from glm_jax.peft import Adapter, load_adapter, save_adapter

PREFIX = "transformer.prefix_encoder."
_PREFIX_NAMES = {
    "embedding.weight": "embedding",
    "trans.0.weight": "projection_in.weight",
    "trans.0.bias": "projection_in.bias",
    "trans.2.weight": "projection_out.weight",
    "trans.2.bias": "projection_out.bias",
}

_PREFIX_SETTINGS = ("pre_seq_len", "prefix_projection")


def is_adapter(src: Path) -> bool:
    """A PEFT directory."""
    return (src / "adapter_config.json").is_file()


def is_ours(src: Path) -> bool:
    """An adapter directory of ours."""
    return (src / "adapter.json").is_file()


def only_prefix(names: Collection[str]) -> bool:
    """A P-Tuning v2 checkpoint: the prefix encoder and nothing else."""
    return all(_short(name) in _PREFIX_NAMES for name in names)


def without_prefix(released: Released) -> tuple[Released, Adapter | None]:
    """A checkpoint that holds a model and its prefix, as the two."""
    names = [n for n in released.tensors if "prefix_encoder." in n and _short(n) in _PREFIX_NAMES]
    if not names:
        return released, None
    prefix = {name: released.tensors[name] for name in names}
    model = {name: x for name, x in released.tensors.items() if name not in prefix}
    found = _prefix_from_torch(dataclasses.replace(released, tensors=prefix))
    config = {k: v for k, v in released.config.items() if k not in _PREFIX_SETTINGS}
    return dataclasses.replace(released, tensors=model, config=config), found


def _short(name: str) -> str:
    return name.rpartition("prefix_encoder.")[2]


def from_torch(
    src: str | Path, dst: str | Path, *, base: str | Path | None = None, overwrite: bool = False
) -> Adapter:
    """Converts a P-Tuning v2 prefix or a PEFT LoRA directory; returns what was written.

    Args:
      base: the model it belongs to (ours or released), which says how a LoRA's fused matrices
        divide; by default the one that ``adapter_config.json`` names.

    Raises:
      UserError: the files are damaged, incomplete, or of a kind that is not known.
    """
    src, dst = Path(src), Path(dst)
    released = open_released(src)
    if released.problems:
        raise Report(src, list(released.problems))
    if is_adapter(src):
        settings = read_json(src / "adapter_config.json")
        config = _base_config(base or settings.get("base_model_name_or_path"), src)
        adapter = lora.from_peft(src, settings, released.tensors, config)
    else:
        adapter = _prefix_from_torch(released)
    save_adapter(dst, adapter, overwrite=overwrite)
    return adapter


def to_torch(
    src: str | Path,
    dst: str | Path,
    *,
    base: str | Path | None = None,
    layout: str = "same",
    overwrite: bool = False,
) -> None:
    """Writes an adapter as the released code or PEFT loads it.

    Args:
      base: the model of a LoRA that does not say it.
      layout: whose names a LoRA's matrices get: of the released code (``original``), of
        ``transformers``, or the ``same`` as those of the model it was trained on.

    Raises:
      UserError: SRC is no adapter, or its base model is not known.
    """
    src, dst = Path(src), Path(dst)
    adapter = load_adapter(src)
    flat = {name: np.asarray(x) for name, x in flat_paths(dict(adapter.params)).items()}
    needed = sum(x.nbytes for x in flat.values())
    if adapter.kind == "lora":
        said = adapter.settings.get("base")
        if base is None and said is None:
            raise UserError(f"{src} does not say its base model; name it with --base")
        config = _base_config(base, src) if base else GLMConfig.from_json(json.dumps(said))
        peft, tensors = lora.to_peft(lora.laid_out(adapter.settings, layout, config), flat, config)
        with whole_or_nothing(dst, overwrite, needed) as root:
            _write_json(root / "adapter_config.json", peft)
            save_file(tensors, root / "adapter_model.safetensors", {"format": "pt"})
        return
    prefix = adapter.settings.get("released_prefix", PREFIX)
    theirs = {ours: name for name, ours in _PREFIX_NAMES.items()}
    with whole_or_nothing(dst, overwrite, needed) as root:
        write_pickled(
            root / "pytorch_model.bin", {prefix + theirs[name]: x for name, x in flat.items()}
        )
        config = {
            **adapter.settings.get("released_config", {}),
            "pre_seq_len": adapter.settings["length"],
            "prefix_projection": adapter.settings["projection"],
        }
        _write_json(root / "config.json", config)


def _prefix_from_torch(released: Released) -> Adapter:
    names = {_short(name): name for name in released.tensors}
    projected = "trans.0.weight" in names or "trans.2.weight" in names
    wanted = set(_PREFIX_NAMES) if projected else {"embedding.weight"}
    problems = [f"missing: {name}" for name in sorted(wanted - set(names))]
    if len(names) != len(released.tensors):
        problems.append("duplicated: some names differ in their prefix only")
    for name, full in names.items():
        if not is_float(released.tensors[full].dtype):
            problems.append(f"mis-typed: {full} holds {released.tensors[full].dtype}")
        elif len(released.tensors[full].shape) != 1 + name.endswith(".weight"):
            problems.append(f"mis-shaped: {full} is {list(released.tensors[full].shape)}")
    if problems:
        raise Report(released.folder, problems)
    flat = {_PREFIX_NAMES[name]: read_all(released.tensors[full]) for name, full in names.items()}
    length = flat["embedding"].shape[0]
    said = released.config.get("pre_seq_len")
    if said is not None and said != length:
        raise UserError(f"{released.folder}/config.json says pre_seq_len {said}; the prefix has "
                        f"{length} tokens")  # fmt: skip
    full = names["embedding.weight"]
    settings = {
        "length": length,
        "projection": projected,
        "released_prefix": full.removesuffix("embedding.weight"),
        "released_config": released.config,
    }
    return Adapter("prefix", settings, lora.nested(flat))


def _base_config(base: Any, src: Path) -> GLMConfig:
    if not base:
        raise UserError(f"{src}/adapter_config.json does not name the base model; use --base")
    folder = Path(str(base))
    if (folder / "params").is_dir():
        return load_config(folder)
    if (folder / "config.json").is_file():
        try:
            return GLMConfig.from_hf(read_json(folder / "config.json"))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{folder}/config.json: {error}") from None
    try:
        return preset(folder.name.lower().replace("-hf", ""))
    except KeyError:
        raise UserError(
            f"{src} belongs to {base!r}, which is neither a folder here nor a released model; name "
            "its folder with --base"
        ) from None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
