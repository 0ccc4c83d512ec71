"""``generation.json``: stop ids, sampling defaults and prompt format, from what a release says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint import read_json
from glm_jax.config import GLMConfig

# Defaults of the released chat functions (spec, sections 3.3 to 3.6).
_SAMPLING: dict[str, dict[str, Any]] = {
    "chatglm-6b": {"temperature": 0.95, "top_p": 0.7, "max_length": 2048},
    "chatglm2-6b": {"temperature": 0.8, "top_p": 0.8, "max_length": 8192},
    "chatglm3-6b": {"temperature": 0.8, "top_p": 0.8, "max_length": 8192},
    "glm-4-9b": {"temperature": 0.8, "top_p": 0.8, "max_length": 128000},
}
_SAMPLING["chatglm-6b-v1.0"] = _SAMPLING["chatglm-6b"]
_KEYS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_length", "do_sample")
CHATGLM3_STOPS = (64795, 64797)  # a user or an observation turn begins


def generation_settings(family: str, config: GLMConfig, folder: Path) -> dict[str, Any]:
    """What the released ``generation_config.json`` says, on top of the family's defaults."""
    path = folder / "generation_config.json"
    released = read_json(path) if path.exists() else {}
    sampling = dict(_SAMPLING.get(family, {}))
    sampling |= {key: released[key] for key in _KEYS if released.get(key) is not None}
    stops = released.get("eos_token_id", list(config.stop_ids))
    stops = list(stops) if isinstance(stops, list | tuple) else [stops]
    if family == "chatglm3-6b" and config.vocab_size > CHATGLM3_STOPS[-1]:
        stops += [stop for stop in CHATGLM3_STOPS if stop not in stops]
    settings = {"family": family, "prompt_format": family, "stop_ids": stops, "sampling": sampling}
    return settings | ({"released": released} if released else {})


def released_generation_config(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``generation_config.json`` to write back, where one was read."""
    released = settings.get("released")
    return dict(released) if isinstance(released, Mapping) else None
