"""Matching a released checkpoint with the model it describes, before anything is written."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.checkpoint import Released
from convert.families import BUFFERS, Layout, detect_layout, family_of
from convert.table import Rule
from convert.tensors import BFLOAT16, Dequantized, Tensor, is_float, num_bytes
from glm_jax.ckpts.trees import flat_paths, to_plain
from glm_jax.config import GLMConfig
from glm_jax.errors import UserError
from glm_jax.nn import GLM

_COMPARE_ROWS = 4096
_LAYER_NUMBER = re.compile(r"(?:^|\.)layers\.(\d{1,6})\.")
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": BFLOAT16}


class Report(UserError):
    """All that is wrong with a checkpoint's tensors, a line each."""

    def __init__(self, path: Any, problems: list[str]):
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{path} does not fit together: {count}\n{lines}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will become of every tensor."""

    config: GLMConfig
    layout: Layout
    prefix: str
    family: str
    rules: list[Rule]
    sources: dict[str, Tensor]
    """Tensor of every rule's released name."""
    targets: dict[str, tuple[tuple[int, ...], np.dtype]]
    """Shape (with the layer axis) and type of every parameter of ours."""
    buffers: dict[str, Tensor]
    notes: list[str]

    @property
    def num_bytes(self) -> int:
        """What will be read."""
        return sum(num_bytes(self.sources[rule.theirs]) for rule in self.rules)


def param_shapes(config: GLMConfig) -> dict[str, tuple[int, ...]]:
    """``{"layers.mlp.up_proj.weight": (L, F, D)}`` of a model, without making it."""
    model = jax.eval_shape(lambda key: GLM(config, key), jax.random.key(0))
    return {name: tuple(leaf.shape) for name, leaf in flat_paths(to_plain(model)).items()}


def make_plan(
    released: Released,
    *,
    family: str = "auto",
    dtype: str | None = None,
    keep_quantized: bool = False,
) -> Plan:
    """Finds the family, settles what the config leaves open, and matches every tensor.

    Args:
      family: one of ``convert.families.FAMILIES`` where the files do not tell, or ``auto``.
      dtype: type of the weights; as stored by default.

    Raises:
      Report: tensors are missing, unexpected, duplicated or mis-shaped.
      UserError: no known family, or a config that describes none.
    """
    layout, prefix = detect_layout(released.tensors)
    config = read_config(released, layout)
    _check_layers(released, config)
    config, notes = _settle(released, layout, prefix, config)
    sources = dict(released.tensors)
    buffers = {name: sources.pop(name) for name in list(sources) if BUFFERS.search(name)}
    problems = list(released.problems)
    config = _quantized(config, sources, keep_quantized, notes, problems)
    try:
        shapes = param_shapes(config)
    except ValueError as error:
        raise UserError(f"{released.folder}/config.json: {error}") from None
    rules = layout.rules(config, shapes, prefix)
    rules = [rule for rule in rules if not rule.alias or rule.theirs in sources]
    problems += _mismatches(rules, sources, keep_quantized)
    if problems:
        raise Report(released.folder, problems)
    if any(rule.alias for rule in rules):
        notes.append("the head repeats the word embedding: stored once")
    targets = _targets(rules, sources, shapes, dtype, notes)
    files = [path.name for path in released.folder.iterdir()]
    named = family_of(config, files) if family == "auto" else family
    return Plan(config, layout, prefix, named, rules, sources, targets, buffers, notes)


def read_config(released: Released, layout: Layout) -> GLMConfig:
    """The released ``config.json`` as ours.

    Raises:
      UserError: it is missing, describes none of the models, or one of another family than the
        tensors.
    """
    path = released.folder / "config.json"
    if not released.config:
        raise UserError(f"{path} is missing; it says what the tensors mean")
    try:
        config = GLMConfig.from_hf(released.config)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error}") from None
    said = json.loads(config.hf_extras)["layout"]
    if said != layout.name:
        raise UserError(f"{path} describes the layout {said!r}, but the tensors have the names of "
                        f"{layout.name!r} ({layout.title})")  # fmt: skip
    return config


def _check_layers(released: Released, config: GLMConfig) -> None:
    """Before the table is worked out for as many layers as a config may claim."""
    found = {int(m[1]) for name in released.tensors if (m := _LAYER_NUMBER.search(name))}
    count = max(found, default=-1) + 1
    if count != config.num_layers:
        problems = [f"the config says {config.num_layers} layers; the tensors have {count}"]
        raise Report(released.folder, problems + list(released.problems))


def _settle(released: Released, layout: Layout, prefix: str, config: GLMConfig):
    """The config with a head tied or not, and labels, as the tensors have it."""
    notes: list[str] = []
    outer = prefix.removesuffix(layout.body)
    names = {e.theirs: e.ours[0] for e in layout.entries}
    by_name = lambda theirs: released.tensors.get(
        outer + theirs[1:] if theirs.startswith("/") else prefix + theirs
    )
    head = next((t for t, ours in names.items() if ours in ("head",)), None)
    head = head or next((e.theirs for e in layout.entries if e.alias), None)
    x = by_name(head) if head else None
    words = by_name(next(e.theirs for e in layout.entries if e.ours == ("embedding",)))
    if x is not None and words is not None and config.tied_head and not _equal(x, words):
        notes.append("the head differs from the word embedding: kept apart")
        config = config.replace(tied_head=False)
    for e in layout.entries:
        if e.ours[0] == "classifier.out_proj.*":
            labels = by_name(e.theirs[:-1] + "weight")
            if labels is not None and len(labels.shape) == 2:
                config = config.replace(num_labels=labels.shape[0])
    return config, notes


def _equal(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    for a in range(0, x.shape[0], _COMPARE_ROWS):
        b = min(a + _COMPARE_ROWS, x.shape[0])
        if x.rows(a, b).tobytes() != y.rows(a, b).tobytes():
            return False
    return True


def _quantized(
    config: GLMConfig, sources: dict[str, Tensor], keep: bool, notes: list[str], problems: list[str]
) -> GLMConfig:
    """Takes integers with scales as floats, or (``keep``) those of the layers as they are."""
    scales = [name for name in sources if name.endswith(".weight_scale")]
    if not scales:
        if keep:
            raise UserError("--keep-quantized: these weights are not quantised")
        return config
    bits = set()
    for name in scales:
        weight, scale = sources.get(name.removesuffix("_scale")), sources[name]
        if weight is None or len(weight.shape) != 2 or scale.shape != weight.shape[:1]:
            problems.append(f"mis-shaped: {name} {list(scale.shape)} fits no integer weight")
            continue
        if weight.dtype.kind not in "iu" or weight.dtype.itemsize != 1:
            problems.append(f"mis-typed: {name} beside a weight of {weight.dtype}")
            continue
        packed = weight.shape[1] * 2 == _columns(config, name)
        if ".layers." in name:
            bits.add(4 if packed else 8)
        if not (keep and ".layers." in name):
            del sources[name]
            sources[name.removesuffix("_scale")] = Dequantized(weight, scale, packed)
    if len(bits) > 1:
        problems.append("quantised to 4 bits in some places and to 8 in others")
    if not keep:
        notes.append(
            f"int{'/'.join(map(str, sorted(bits)))} weights become float32, which holds scale "
            "times integer exactly (--dtype float16 is half that, --keep-quantized less)"
        )
        return _without_bits(config)
    return config.replace(quantization=f"int{max(bits, default=8)}")


def _columns(config: GLMConfig, name: str) -> int:
    """Input width of the matrix behind a released scale's name."""
    if name.endswith("dense_4h_to_h.weight_scale"):
        return config.mlp_dim
    if name.endswith(".dense.weight_scale"):
        return config.num_heads * config.head_dim
    return config.embed_dim


def _without_bits(config: GLMConfig) -> GLMConfig:
    """The config of the same model in floats: its released entries speak of integers."""
    extras = json.loads(config.hf_extras)
    for key in ("quantization_bit", "quantization_embeddings"):
        if extras["entries"].get(key):
            extras["entries"][key] = 0 if key == "quantization_bit" else False
    return config.replace(hf_extras=json.dumps(extras))


def _mismatches(rules: list[Rule], sources: Mapping[str, Tensor], keep: bool) -> list[str]:
    problems = []
    for rule in rules:
        x = sources.get(rule.theirs)
        if x is None:
            problems.append(f"missing: {rule.theirs} {list(rule.shape)}")
        elif tuple(x.shape) != rule.shape:
            problems.append(f"mis-shaped: {rule.theirs} is {list(x.shape)} in {x.file.name}, "
                            f"the config says {list(rule.shape)}")  # fmt: skip
        elif not is_float(x.dtype) and not rule.names[0].endswith("weight_q"):
            problems.append(f"mis-typed: {rule.theirs} holds {x.dtype} without a scale")
    known = {rule.theirs for rule in rules}
    extra = (f"unexpected: {n} {list(x.shape)}" for n, x in sources.items() if n not in known)
    return [*problems, *extra]


def _targets(rules, sources, shapes, dtype: str | None, notes: list[str]):
    """One type for each of our parameters; layers of several types take the widest."""
    found: dict[str, set[np.dtype]] = {}
    for rule in rules:
        if not rule.alias:
            for name in rule.names:
                found.setdefault(name, set()).add(sources[rule.theirs].dtype)
    targets = {}
    for name, dtypes in found.items():
        integers = name.endswith(("weight_q", "weight_scale"))
        if len(dtypes) > 1:
            notes.append(f"{name} has several types: stored as {_widest(dtypes)}")
        stored = _widest(dtypes)
        targets[name] = (shapes[name], stored if dtype is None or integers else DTYPES[dtype])
    return targets


def _widest(dtypes: set[np.dtype]) -> np.dtype:
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return np.dtype(jnp.float32) if np.dtype(np.float64) not in dtypes else np.dtype(np.float64)
