"""An adapter as a directory of its own: what was trained beside a model, and how to use it.

adapter.json      {"kind": "prefix" or "lora", "settings": {...}}
params/           the weights: Orbax, a plain nested dict of names
checksums.json    one number per array of params/

``prefix``: settings length, projection (bool); params as ``PrefixEncoder`` names them.
``lora``: settings rank, alpha, targets, rslora, dropout; for every target, at the module's own path
(``layers.attention.q_proj``), ``lora_a`` [L, r, in...] and ``lora_b`` [L, out..., r].
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

from glm_jax.ckpts.checksums import checksums
from glm_jax.ckpts.model_dir import (
    replace_directory,
    restore_arrays,
    stored_shapes,
    verify_arrays,
)
from glm_jax.errors import UserError, first_line

Kind = Literal["prefix", "lora"]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What an adapter directory holds.

    Raises:
      ValueError: an unknown kind.
    """

    kind: Kind
    settings: Mapping[str, Any]
    params: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; choose one of {', '.join(get_args(Kind))}")


def save_adapter(directory: epath.PathLike, adapter: Adapter, *, overwrite: bool = False) -> None:
    """Writes the directory under a temporary name and renames it when it is whole.

    Raises:
      UserError: the directory exists and ``overwrite`` is False, or it cannot be written.
    """
    target = epath.Path(directory).absolute()
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already; remove it or choose another directory")
    temporary = target.parent / f".{target.name}.writing"
    about = {"kind": adapter.kind, "settings": dict(adapter.settings)}
    try:
        sums = {name: int(x) for name, x in jax.device_get(checksums(adapter.params)).items()}
        if temporary.exists():
            temporary.rmtree()
        temporary.mkdir(parents=True)
        (temporary / "adapter.json").write_text(json.dumps(about, indent=2) + "\n")
        (temporary / "checksums.json").write_text(json.dumps(sums, indent=1) + "\n")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary / "params", dict(adapter.params))
        replace_directory(temporary, target)
    except Exception as error:  # Orbax and TensorStore raise many types for a full disk
        raise UserError(f"{target} could not be written: {first_line(error)}") from error


def adapter_about(directory: epath.PathLike) -> tuple[Kind, dict[str, Any]]:
    """Kind and settings of an adapter directory, without its weights.

    Raises:
      UserError: there is none, or it does not describe one.
    """
    path = epath.Path(directory).absolute() / "adapter.json"
    try:
        about = json.loads(path.read_text())
        kind, settings = about["kind"], dict(about["settings"])
        Adapter(kind, settings, {})
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no adapter: it has no adapter.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not describe an adapter: {first_line(error)}") from None
    return kind, settings


def load_adapter(directory: epath.PathLike) -> Adapter:
    """Inverse of ``save_adapter``; the arrays lie on one device.

    Raises:
      UserError: the directory or a part of it is missing, damaged or no adapter.
    """
    root, (kind, settings) = epath.Path(directory).absolute(), adapter_about(directory)
    here = SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored_shapes(root)
    )
    params = restore_arrays(root, target)
    verify_arrays(root, params)
    return Adapter(kind, settings, params)
