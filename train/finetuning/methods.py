"""What each method adds to a model, and which of its parameters it trains."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array

from convert import adapters as released
from convert.checkpoint import way_back
from glm_jax.ckpts.trees import to_plain
from glm_jax.config import GLMConfig
from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.peft import (
    Adapter,
    Freezing,
    PrefixEncoder,
    add_lora,
    attach,
    attach_lora,
    load_adapter,
    lora_params,
    lora_scale,
    lora_targets,
)
from glm_jax.peft.partition import Choice
from train.finetuning.options import Finetune, Tuning


class Method(Protocol):
    def prepare(self, model: GLM, key: Array) -> GLM:
        """The model with what is trained beside it. Pure, so that it can be abstract."""
        ...

    def trained(self, model: GLM) -> Choice:
        """Which parameters of a prepared model are trained."""
        ...

    def adapter(self, model: GLM) -> Adapter | None:
        """What was trained, where that is an adapter."""
        ...


def method_of(args: Tuning, config: GLMConfig) -> Method:
    """The method that the options ask for.

    Raises:
      UserError: the adapter to go on from cannot be read, or is of the other kind.
    """
    start = read_adapter(args.adapter, config) if args.adapter else None
    base = json.loads(config.replace(quantization="none", quant_group=0).to_json())
    if args.trains == "lora":
        return _Lora(args, base, _of_kind(start, "lora", args))
    if isinstance(args, Finetune) and args.trains == "ptuning":
        return _PTuning(args, base, _of_kind(start, "prefix", args))
    return _Weights(args.freeze)


def read_adapter(folder: str, config: GLMConfig) -> Adapter:
    """An adapter directory of ours, of PEFT, or a released P-Tuning v2 prefix.

    Raises:
      UserError: it is none of them, or damaged.
    """
    src = Path(folder)
    if released.is_ours(src):
        return load_adapter(src)
    if not src.is_dir():
        raise UserError(f"--adapter {folder} is no directory")
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch, "base")
        (base / "params").mkdir(parents=True)
        (base / "config.json").write_text(config.to_json())
        return released.from_torch(src, Path(scratch, "ours"), base=base)


def _of_kind(adapter: Adapter | None, kind: str, args: Tuning) -> Adapter | None:
    if adapter is not None and adapter.kind != kind:
        raise UserError(f"--adapter {args.adapter} is a {adapter.kind}, not for {args.trains}")
    return adapter


@dataclasses.dataclass(frozen=True)
class _Lora:
    args: Tuning
    base: Mapping[str, Any]
    start: Adapter | None

    def prepare(self, model: GLM, key: Array) -> GLM:
        rate = self.args.lora_dropout
        if self.start is not None:
            return attach_lora(model, self.start, rate=rate)
        targets, scale = lora_targets(model, self.args.lora_targets), lora_scale(self._settings())
        return add_lora(model, targets, key, rank=self.args.lora_rank, scale=scale, rate=rate)

    def trained(self, model: GLM) -> Choice:
        return lambda path: ".lora." in path

    def adapter(self, model: GLM) -> Adapter:
        params = lora_params(model)
        names = [f"layers.{part}.{name}" for part in params["layers"] for name in
                 params["layers"][part]]  # fmt: skip
        return Adapter("lora", {**self._settings(), "targets": sorted(names)}, params)

    def _settings(self) -> dict[str, Any]:
        args = self.args
        own = {"rank": args.lora_rank, "alpha": args.lora_alpha, "rslora": args.rslora}
        if layout := way_back(Path(args.ckpt)).get("layout"):
            own["layout"] = layout  # PEFT's names are to be those of the model that came
        if self.start is not None:
            own = dict(self.start.settings)
        return {**own, "dropout": args.lora_dropout, "base": self.base}


@dataclasses.dataclass(frozen=True)
class _PTuning:
    args: Finetune
    base: Mapping[str, Any]
    start: Adapter | None

    def prepare(self, model: GLM, key: Array) -> GLM:
        if self.start is not None:
            model = attach(model, self.start)
        else:
            model = jax.tree.map(lambda x: x, model)
            make = functools.partial(PrefixEncoder, projection=self.args.prefix_projection)
            model.prefix = make(model.config, self.args.prefix_length, key)
        assert isinstance(model.prefix, PrefixEncoder)
        model.prefix.rate = self.args.prefix_dropout
        return model

    def trained(self, model: GLM) -> Choice:
        return lambda path: path.startswith("prefix.")

    def adapter(self, model: GLM) -> Adapter:
        prefix = model.prefix
        assert isinstance(prefix, PrefixEncoder)
        own = dict(self.start.settings) if self.start else {}
        own |= {"length": prefix.length, "projection": prefix.projection_in is not None}
        own |= {"dropout": self.args.prefix_dropout, "base": self.base}
        return Adapter("prefix", own, to_plain(prefix))


@dataclasses.dataclass(frozen=True)
class _Weights:
    """All of the model's own weights, or all but some."""

    freeze: str

    def prepare(self, model: GLM, key: Array) -> GLM:
        del key
        return Freezing(self.freeze, model).cut(model) if self.freeze else model

    def trained(self, model: GLM) -> Choice:
        return Freezing(self.freeze, model).trained(model) if self.freeze else lambda path: True

    def adapter(self, model: GLM) -> None:
        return None


def as_type(trained: Any, dtype: str) -> Any:
    """Weights that are trained, in their type. A prefix is float32 always (as released)."""

    def cast(path: tuple[Any, ...], x: Array) -> Array:
        prefix = getattr(path[0], "name", "") == "prefix"
        return x.astype(jnp.float32 if prefix else dtype)

    return jax.tree_util.tree_map_with_path(cast, trained)
