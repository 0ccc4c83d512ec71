"""PEFT's LoRA of fused matrices as ours of their parts, and back.

``B A`` on a fused [q | k | v] is three products with one A, whose B are the rows of the parts: so
splitting is exact. Back, three products with the same A are one again; with different ones they
fit side by side into a larger rank, A stacked and B block-diagonal.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.families import LAYOUTS
from convert.plan import Report, param_shapes
from convert.table import Rule
from convert.tensors import Tensor, is_float, read_all
from glm_jax.config import GLMConfig
from glm_jax.errors import UserError
from glm_jax.peft import Adapter

_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight$")
_UNKNOWN = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")


def from_peft(
    src: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], config: GLMConfig
) -> Adapter:
    """The adapter of a PEFT directory.

    Raises:
      Report: tensors are missing, unexpected or mis-shaped.
      UserError: a kind of adapter that is not LoRA, or a variant that is not known.
    """
    path = src / "adapter_config.json"
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {settings.get('peft_type')!r}; only LORA is known")
    for key in _UNKNOWN:
        if settings.get(key):
            raise UserError(f"{path} has {key} {settings[key]!r}, which is not known here")
    if settings.get("bias", "none") != "none":
        raise UserError(f"{path} trains biases ({settings['bias']!r}), which is not known here")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"{path} has r {rank!r} and lora_alpha {alpha!r}; both are numbers")
    found: dict[str, dict[str, Tensor]] = {}
    problems = []
    for name, x in tensors.items():
        match = _NAME.match(name)
        if match is None or not is_float(x.dtype):
            problems.append(f"unexpected: {name}, {x.dtype} {list(x.shape)}")
        else:
            found.setdefault(match[1], {})[match[2]] = x
    layout = _layout(found, config)
    rules = _weight_rules(layout, config)
    flat: dict[str, np.ndarray] = {}
    for module, pair in found.items():
        rule = rules.get(f"{module}.weight")
        if rule is None:
            problems.append(f"unexpected: {module} is no matrix of {config.name or layout}")
            continue
        wanted = {"A": (rank, rule.shape[1]), "B": (rule.shape[0], rank)}
        for letter, shape in wanted.items():
            if letter not in pair:
                problems.append(f"missing: {module}.lora_{letter}.weight")
            elif tuple(pair[letter].shape) != shape:
                problems.append(f"mis-shaped: {module}.lora_{letter}.weight is "
                                f"{list(pair[letter].shape)}, not {list(shape)}")  # fmt: skip
        if not problems:
            _split(flat, rule, read_all(pair["A"]), read_all(pair["B"]), config.num_layers)
    if problems or not flat:
        raise Report(src, problems or ["it holds no lora_A and lora_B"])
    ours = sorted({name.rpartition(".")[0] for name in flat})
    about = {
        "rank": rank,
        "alpha": alpha,
        "targets": ours,
        "rslora": bool(settings.get("use_rslora", False)),
        "dropout": settings.get("lora_dropout", 0.0),
        "released": dict(settings),
        "layout": layout,
        "outer": "glm." if any(module.startswith("glm.") for module in found) else "",
        "base": json.loads(config.to_json()),
    }
    return Adapter("lora", about, nested(flat))


def laid_out(settings: Mapping[str, Any], layout: str, config: GLMConfig) -> dict[str, Any]:
    """An adapter's settings for the names of another layout: see ``adapters.to_torch``."""
    came = settings.get("layout") or _original(config)
    chosen = {"same": came, "original": _original(config)}.get(layout, layout)
    settings = {**settings, "layout": chosen}
    if chosen != came:
        released = dict(settings.get("released", {}))
        released.pop("target_modules", None)
        settings = {k: v for k, v in settings.items() if k != "outer"} | {"released": released}
    return settings


def to_peft(
    settings: Mapping[str, Any], flat: Mapping[str, np.ndarray], config: GLMConfig
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """``adapter_config.json`` and the tensors of a PEFT directory."""
    layout = settings.get("layout") or _original(config)
    grouped: dict[str, tuple[Rule, list[str]]] = {}
    outer = settings.get("outer", "glm." if layout == "glm" else "")  # as the HF class names them
    for theirs, rule in _weight_rules(layout, config).items():
        if theirs.startswith("glm.") != (outer == "glm."):
            continue
        modules = [name.removesuffix(".weight") for name in rule.names]
        held = [module for module in modules if f"{module}.lora_a" in flat]
        if held:
            grouped[theirs.removesuffix(".weight")] = (rule, held)
    spread = max(_spread(rule, held, flat) for rule, held in grouped.values())
    rank = settings["rank"] * spread
    tensors = {}
    for module, (rule, held) in grouped.items():
        a, b = _join(rule, held, flat, spread)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    growth = math.sqrt(spread) if settings.get("rslora") else spread
    alpha = settings["alpha"] * growth
    peft = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "inference_mode": True,
        "base_model_name_or_path": config.name or None,
        **settings.get("released", {}),
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": settings.get("dropout", 0.0),
        "use_rslora": bool(settings.get("rslora", False)),
    }
    peft.setdefault("target_modules", sorted({name.rsplit(".", 1)[-1] for name in grouped}))
    return peft, tensors


def nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """``{"a.b": x}`` as ``{"a": {"b": x}}``."""
    tree: dict[str, Any] = {}
    for name, x in flat.items():
        *parents, last = name.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = x
    return tree


def _original(config: GLMConfig) -> str:
    if config.position == "learned":
        return "glm"
    return "chatglm" if config.rope_2d or config.residual_scale is not None else "chatglm2"


def _layout(modules: Mapping[str, Any], config: GLMConfig) -> str:
    """Transformers' names, or those of the family's released code."""
    if any(".self_attn." in name or "gate_up_proj" in name for name in modules):
        return "transformers"
    return _original(config)


def _weight_rules(layout: str, config: GLMConfig) -> dict[str, Rule]:
    """The layers' matrices by released name, with and without ``glm.``."""
    plain = config.replace(quantization="none", num_labels=0)
    chosen = LAYOUTS[layout]
    prefix = chosen.body if layout == "transformers" else ""
    rules = chosen.rules(plain, param_shapes(plain), prefix)
    matrices = {r.theirs: r for r in rules if r.layer is not None and len(r.shape) == 2}
    return matrices | {f"{chosen.body}{name}": r for name, r in matrices.items() if layout == "glm"}


def _as_b(rule: Rule, rank: int) -> Rule:
    """The rule for B, whose rows are those of the matrix and whose columns are the rank."""
    return dataclasses.replace(rule, shapes=tuple((*s[: rule.fold], rank) for s in rule.shapes))


def _split(flat: dict[str, np.ndarray], rule: Rule, a: np.ndarray, b: np.ndarray, layers: int):
    rank = a.shape[0]
    for_b = _as_b(rule, rank)
    whole = {name: shape[0] for name, shape in zip(rule.names, rule.shapes, strict=True)}
    for move in for_b.moves(whole):
        views = for_b.views(b[move.start : move.stop], move)
        for part, view in zip(move.parts, views, strict=True):
            module = part.name.removesuffix(".weight")
            inputs = rule.shapes[rule.names.index(part.name)][rule.fold :]
            for name, x in (("lora_a", a.reshape(rank, *inputs)), ("lora_b", view)):
                zeros = np.zeros((layers, *x.shape), x.dtype)  # layers that PEFT left out
                flat.setdefault(f"{module}.{name}", zeros)[rule.layer] = x


def _pair(module: str, layer: int, flat) -> tuple[np.ndarray, np.ndarray]:
    a, b = flat[f"{module}.lora_a"][layer], flat[f"{module}.lora_b"][layer]
    return a.reshape(a.shape[0], -1), b


def _spread(rule: Rule, held: Sequence[str], flat) -> int:
    """How many different A the parts of one matrix have."""
    assert rule.layer is not None
    pairs = [_pair(module, rule.layer, flat) for module in held]
    same = all(np.array_equal(a, pairs[0][0]) for a, _ in pairs)
    return 1 if same else len(held)


def _join(rule: Rule, held: Sequence[str], flat, spread: int) -> tuple[np.ndarray, np.ndarray]:
    assert rule.layer is not None
    pairs = {module: _pair(module, rule.layer, flat) for module in held}
    first = pairs[held[0]][0]
    rank, dtype = first.shape[0], first.dtype
    alike = all(np.array_equal(a, first) for a, _ in pairs.values())
    joined = np.zeros((rank * spread, rule.shape[1]), dtype)
    b = np.zeros((rule.shape[0], rank * spread), dtype)
    for_b = _as_b(rule, rank * spread)
    whole = {name: shape[0] for name, shape in zip(rule.names, rule.shapes, strict=True)}
    columns = {module: 0 if alike else i * rank for i, module in enumerate(held)}
    for module, (a, _) in pairs.items():
        joined[columns[module] : columns[module] + rank] = a
    for move in for_b.moves(whole):
        views = for_b.views(b[move.start : move.stop], move)
        for part, view in zip(move.parts, views, strict=True):
            module = part.name.removesuffix(".weight")
            if module in pairs:
                at = columns[module]
                view[..., at : at + rank] = pairs[module][1]
    return joined, b
