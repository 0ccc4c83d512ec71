"""AdamW as GLM's recipes set it: decay groups, clipping, schedule."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax

from glm_jax.ckpts.trees import key_names
from train.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with decoupled weight decay (THUDM/GLM config/*.sh)."""

    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    weight_decay: float = 0.1
    """Decay per unit of learning rate; never applied to norms and biases."""
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    clip: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    embed_grad_scale: float = 1.0
    """Embedding-gradient shrink of GLM-130B (it used 0.1); 1 leaves the gradient as it is."""

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name in ("weight_decay", "eps", "clip", "embed_grad_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")

    def make(self) -> optax.GradientTransformation:
        """The optax transformation; its update count is the ``t`` of the schedule."""
        clip = optax.clip_by_global_norm(self.clip) if self.clip else optax.identity()
        adamw = optax.adamw(
            self.schedule.fn(),
            b1=self.beta1,
            b2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=decay_mask,
        )
        return optax.chain(clip, adamw)


def decays(names: tuple[str, ...]) -> bool:
    """GLM's two groups: every bias and everything inside a norm is spared, embedding tables and
    position tables are not (THUDM/GLM model/modeling_glm.py)."""
    return names[-1] != "bias" and not any("norm" in name for name in names)


def decay_mask(params: Any) -> Any:
    """True where weight decay applies, with the structure of ``params``."""

    def of(path: tuple[Any, ...], _: Any) -> bool:
        names = key_names(path)  # a Variable's own array is called "value"
        return decays(names[:-1] if names[-1] == "value" else names)

    return jax.tree_util.tree_map_with_path(of, params)
