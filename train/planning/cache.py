"""Answers that the compiler gave before, kept as long as neither the program nor JAX changes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from train.planning.question import Question

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
# What the compiled programs and the reading of them are made from, below the project's root; all
# that question.py decides, its defaults too, stands in the key itself.
SOURCES = (
    "glm_jax/config.py", "glm_jax/presets.py", "glm_jax/sharding.py", "glm_jax/nn", "glm_jax/ops",
    "train/planning/child.py", "train/planning/hlo.py", "train/planning/kernels.py",
    "train/planning/kept.py", "train/planning/loops.py", "train/planning/program.py",
    "train/planning/programs.py", "train/planning/refusal.py", "train/planning/schedule.py",
    "train/planning/topology.py", "train/planning/walk.py",
)  # fmt: skip
TRAINING = (
    "train/trainer.py", "train/compiling.py", "train/losses.py", "train/optim.py",
    "train/schedules.py", "train/planning/training.py",
)  # fmt: skip
FINETUNING = (
    "glm_jax/peft", "train/finetuning/methods.py", "train/finetuning/options.py",
    "train/finetuning/base.py", "train/finetuning/run.py", "train/finetuning/tasks.py",
)  # fmt: skip
INFERENCE = (
    "glm_jax/text/decoding_loop.py", "glm_jax/text/sampling.py", "train/planning/inference.py",
)  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent.parent


def directory() -> Path:
    """``$XDG_CACHE_HOME/glm_jax/plans``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "glm_jax" / "plans"


def key(question: Question) -> str:
    """A name for this question under these versions and this source."""
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    text = "\n".join([question.to_json(), repr(question.config), *versions, sources(question)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def version(package: str) -> str:
    """Of an installed package; empty where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def sources(question: Question) -> str:
    """A hash of all source that decides an answer to this question."""
    names = SOURCES + (TRAINING if question.training else INFERENCE)
    names += FINETUNING if question.task == "finetune" else ()
    digest = hashlib.sha256()
    for name in names:
        place = ROOT / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def load(key: str) -> dict[str, Any] | None:
    """The answer under this key; None where there is none that is whole."""
    try:
        found = json.loads((directory() / f"{key}.json").read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("fits"), bool) and "shares" in found
    return found if whole else None


def store(key: str, answer: dict[str, Any]) -> None:
    """Keeps an answer; a cache that cannot be written is no reason to fail."""
    place = directory()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place, suffix=".new", delete=False) as file:
            json.dump(answer, file)
        os.replace(file.name, place / f"{key}.json")
    except OSError:
        return
