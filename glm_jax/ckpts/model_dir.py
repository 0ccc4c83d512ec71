"""A model as a directory that stands alone.

config.json       a GLMConfig
params/           the weights: Orbax, a plain nested dict of names
tokenizer/        the tokenizer's files, as released or trained
generation.json   stop ids, sampling defaults, prompt format
checksums.json    one number per array of params/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding

from glm_jax.ckpts.checksums import checksums, damaged
from glm_jax.ckpts.trees import differences, flat_paths, from_plain, to_plain
from glm_jax.config import GLMConfig
from glm_jax.errors import UserError, first_line
from glm_jax.nn import GLM, check_not_prepared
from glm_jax.nn.params import Frozen, is_variable
from glm_jax.sharding import tree_shardings


def save_model(
    directory: epath.PathLike,
    model: GLM | Mapping[str, Any],
    config: GLMConfig,
    *,
    tokenizer_dir: epath.PathLike | None = None,
    generation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the directory under a temporary name and renames it when it is whole.

    Every process of a multi-host run calls this; the directory is on a file system they share.

    Args:
      model: the network, or its weights as a nested dict.
      tokenizer_dir: its files are copied.
      generation: contents of ``generation.json``; the config's stop ids by default.

    Raises:
      UserError: the directory exists and ``overwrite`` is False, it cannot be written, or the model
        has a prefix or LoRA, which belong into an adapter, or is one of ``glm_jax.prepare``.
    """
    target = epath.Path(directory).absolute()
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already; remove it or choose another directory")
    temporary = target.parent / f".{target.name}.writing"
    if isinstance(model, GLM) and model.prefix is not None:
        raise UserError(
            f"{target} holds a model alone: write its prefix with glm_jax.peft.save_adapter, and "
            "the model with prefix set to None"
        )
    if isinstance(model, GLM):
        check_not_prepared(model, "save")
    plain = dict(model) if isinstance(model, Mapping) else to_plain(model)
    if any(".lora." in name for name in flat_paths(plain)):
        raise UserError(
            f"{target} holds a model alone: merge its LoRA first (glm_jax.peft.merge_lora), or "
            "write it with glm_jax.peft.save_adapter"
        )
    generation = {"stop_ids": list(config.stop_ids)} if generation is None else dict(generation)
    try:
        sums = {name: int(value) for name, value in jax.device_get(checksums(plain)).items()}
        if jax.process_index() == 0:
            _write_small_files(temporary, config, sums, generation, tokenizer_dir)
        barrier("glm_jax.save_model: directory made")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary / "params", plain)
        if jax.process_index() == 0:
            replace_directory(temporary, target)
        barrier("glm_jax.save_model: directory renamed")
    except Exception as error:  # Orbax and TensorStore raise many types for a full disk
        raise UserError(f"{target} could not be written: {first_line(error)}") from error


def load_model(
    directory: epath.PathLike, *, mesh: Mesh | None = None, dtype: Any | None = None
) -> GLM:
    """The network of a directory written by ``save_model`` or ``convert``.

    Args:
      mesh: every weight is read straight into its shards on it; one device by default.
      dtype: type of the weights in memory, an array type or its name; as stored by default.
        Integer weights and their scales stay what they are.

    Raises:
      UserError: the directory or a part of it is missing, damaged or does not fit its config.
    """
    root = epath.Path(directory).absolute()
    config = load_config(root)
    stored = stored_shapes(root)
    abstract = jax.eval_shape(lambda key: GLM(config, key), jax.random.key(0))
    wanted = to_plain(abstract)
    if wrong := differences(wanted, stored):
        raise UserError(f"{root}/params does not fit {root}/config.json: {wrong}")
    if mesh is None:
        shardings = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), wanted)
    else:
        shardings = to_plain(tree_shardings(abstract, mesh))
    stored = jax.tree.map(lambda w, s: s, wanted, stored)
    dtypes = _dtypes(abstract, stored, dtype)
    target = jax.tree.map(
        lambda w, t, sharding: jax.ShapeDtypeStruct(w.shape, t, sharding=sharding),
        *(wanted, dtypes, shardings),
    )
    plain = restore_arrays(root, target)
    if jax.tree.all(jax.tree.map(lambda t, w: t.dtype == w.dtype, target, stored)):
        verify_arrays(root, plain)
    return from_plain(plain, abstract)


def _dtypes(abstract: GLM, stored: dict[str, Any], dtype: Any | None) -> dict[str, Any]:
    """The type each array is read as."""

    def fixed(variable: Any) -> Any:
        return jax.tree.map(lambda _: isinstance(variable, Frozen), variable)

    fixed_plain = to_plain(jax.tree.map(fixed, abstract, is_leaf=is_variable))
    cast = None if dtype is None else jnp.dtype(dtype)
    return jax.tree.map(lambda f, s: s.dtype if f or cast is None else cast, fixed_plain, stored)


def load_config(directory: epath.PathLike) -> GLMConfig:
    """The directory's ``config.json``.

    Raises:
      UserError: it is missing or not a config.
    """
    path = epath.Path(directory) / "config.json"
    try:
        return GLMConfig.from_json(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{directory} is no model directory: it has no config.json") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a GLMConfig: {first_line(error)}") from None


def load_generation(directory: epath.PathLike) -> dict[str, Any]:
    """The directory's ``generation.json``; the config's stop ids where there is none.

    Raises:
      UserError: it is not a JSON object.
    """
    path = epath.Path(directory) / "generation.json"
    if not path.exists():
        return {"stop_ids": list(load_config(directory).stop_ids)}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path} is not a JSON object: {first_line(error)}") from None


def _write_small_files(directory, config, sums, generation, tokenizer_dir) -> None:
    if directory.exists():
        directory.rmtree()
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(config.to_json())
    (directory / "checksums.json").write_text(json.dumps(sums, indent=1) + "\n")
    (directory / "generation.json").write_text(json.dumps(generation, indent=2) + "\n")
    if tokenizer_dir is not None:
        (directory / "tokenizer").mkdir()
        for path in epath.Path(tokenizer_dir).iterdir():
            if path.is_file():
                path.copy(directory / "tokenizer" / path.name)


def replace_directory(temporary: epath.Path, target: epath.Path) -> None:
    """Gives a whole directory its name; one that had it is removed after that."""
    old = target.parent / f".{target.name}.old"
    if old.exists():
        old.rmtree()
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    if old.exists():
        old.rmtree()


def stored_shapes(root: epath.Path) -> dict[str, Any]:
    """Shape and type of every array in ``params/``, as a nested dict.

    Raises:
      UserError: it is missing or unreadable.
    """
    if not (root / "params").exists():
        raise UserError(f"{root} has no params/: it is not a whole model directory")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return dict(checkpointer.metadata(root / "params").item_metadata.tree)
    except Exception as error:
        raise UserError(f"{root}/params cannot be read: {first_line(error)}") from None


def restore_arrays(root: epath.Path, target: dict[str, Any]) -> dict[str, Any]:
    """The arrays of ``params/`` with the shapes, types and shardings of ``target``.

    Raises:
      UserError: they cannot be read.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(root / "params", target)
    except Exception as error:
        raise UserError(f"{root}/params is damaged: {first_line(error)}") from None


def verify_arrays(root: epath.Path, plain: dict[str, Any]) -> None:
    """Against ``checksums.json``, where there is one.

    Raises:
      UserError: an array changed since it was written.
    """
    path = root / "checksums.json"
    if path.exists() and (bad := damaged(plain, json.loads(path.read_text()))):
        raise UserError(f"{root}/params is damaged: the numbers of {', '.join(bad[:4])} changed")


def barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
