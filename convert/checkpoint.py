"""Opening a folder of released files: its config, its tensors wherever they lie, and what is odd.

Nothing but headers is read here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.megatron import read_model_parallel
from convert.readers.pickled import read_pickled
from convert.readers.safetensors_file import read_safetensors
from convert.tensors import Tensor, num_bytes
from glm_jax.errors import UserError, first_line

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
RELEASED_FILE = "released.json"  # in a model directory: how to write it as it came
_MODEL_PARALLEL = re.compile(r"mp_rank_(\d\d)_model_states\.pt$")


@dataclasses.dataclass(frozen=True)
class Released:
    """A released checkpoint: names to tensors, still on disk."""

    folder: Path
    config: dict[str, Any]
    """``config.json``; empty where there is none."""
    tensors: dict[str, Tensor]
    files: tuple[Path, ...]
    problems: tuple[str, ...] = ()
    """What contradicts itself, such as an index that names tensors its files do not hold."""

    @property
    def num_bytes(self) -> int:
        return sum(num_bytes(x) for x in self.tensors.values())


def open_released(path: Path) -> Released:
    """A folder of released files, or one weight file of such a folder.

    Raises:
      UserError: there are no weights, or a file cannot be read.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; name a folder with a released checkpoint")
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if path.is_file():
        return _of_files(folder, config, [path])
    for name in INDEXES:
        if (folder / name).exists():
            return _indexed(folder, config, folder / name)
    for name in (*SINGLES, *ADAPTERS):
        if (folder / name).exists():
            return _of_files(folder, config, [folder / name])
    ranks = _model_parallel_files(folder)
    if ranks:
        config, tensors = read_model_parallel(ranks, config)
        return Released(ranks[0].parent, config, tensors, tuple(ranks))
    loose = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if loose:
        return _of_files(folder, config, loose)
    raise UserError(
        f"{folder} holds no weights: none of {', '.join((*INDEXES, *SINGLES))}, "
        "mp_rank_00_model_states.pt"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UserError: the file is missing or something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is a JSON {type(content).__name__}, not an object")
    return content


def read_weights(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one file, and the names it holds twice.

    Raises:
      UserError: it is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; download it again")
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the weights; run git lfs pull")
    if not start:
        raise UserError(f"{path} is empty; download it again")
    if path.suffix == ".safetensors":
        tensors, twice = read_safetensors(path)
        return dict(tensors), twice
    return dict(read_pickled(path).tensors), []


def _of_files(folder: Path, config: dict, paths: list[Path]) -> Released:
    tensors: dict[str, Tensor] = {}
    problems = []
    for path in paths:
        found, twice = read_weights(path)
        problems += [f"duplicated: {name} stands twice in {path.name}" for name in twice]
        for name, x in found.items():
            if name in tensors:
                other = tensors[name].file.name
                problems.append(f"duplicated: {name} is in {other} and in {path.name}")
            tensors[name] = x
    if not tensors:
        raise UserError(f"{paths[0]} holds no tensors")
    return Released(folder, config, tensors, tuple(paths), tuple(problems))


def _indexed(folder: Path, config: dict, index: Path) -> Released:
    where = read_json(index).get("weight_map")
    sane = isinstance(where, Mapping) and where
    if not sane or not all(isinstance(f, str) and f for f in where.values()):
        raise UserError(f"{index} has no weight_map of names to files")
    by_file: dict[str, list[str]] = defaultdict(list)
    for name, file in where.items():
        if Path(file).name != file:
            raise UserError(f"{index} names the file {file!r}, which is not in its folder")
        by_file[file].append(name)
    released = _of_files(folder, config, [folder / file for file in sorted(by_file)])
    problems = list(released.problems)
    for file, names in sorted(by_file.items()):
        for name in names:
            found = released.tensors.get(name)
            if found is None:
                problems.append(f"missing: {name} is not in {file}, where {index.name} has it")
            elif found.file.name != file and not any(name in p for p in released.problems):
                problems.append(f"misplaced: {index.name} has {name} in {file}; it is in "
                                f"{found.file.name}")  # fmt: skip
    return dataclasses.replace(released, problems=tuple(problems))


def _model_parallel_files(folder: Path) -> list[Path]:
    """THUDM/GLM's own checkpoints: here, or in the folder that the file ``latest`` names."""
    places = [folder]
    latest = folder / "latest"
    if latest.is_file():
        name = latest.read_text(errors="replace").strip()
        if name and Path(name).name == name:
            places.insert(0, folder / name)
    for place in places:
        if place.is_dir():
            ranks = sorted(p for p in place.iterdir() if _MODEL_PARALLEL.search(p.name))
            if ranks:
                return ranks
    return []


def way_back(folder: Path) -> dict[str, Any]:
    """How a model directory came: its layout among other things; empty where it was made here."""
    path = folder / RELEASED_FILE
    return read_json(path) if path.exists() else {}
