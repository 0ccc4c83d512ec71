"""A scalar head on a language model: it makes a reward model, or tells values to PPO."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array

from glm_jax.ckpts.trees import from_plain, to_plain
from glm_jax.config import GLMConfig
from glm_jax.errors import UserError
from glm_jax.nn import GLM, ClassificationHead
from glm_jax.peft import Adapter
from glm_jax.peft.partition import Choice
from train.finetuning.methods import Method


def scoring(config: GLMConfig, ckpt: str) -> GLMConfig:
    """The config with one score.

    Raises:
      UserError: the model has a head for something else.
    """
    if config.num_labels > 1:
        raise UserError(f"{ckpt} has a head of {config.num_labels} labels; a reward model has one")
    return config.replace(num_labels=1)


def with_head(model: GLM, head: ClassificationHead) -> GLM:
    """The model with this head; its other weights are shared with the one given."""
    config = model.config.replace(num_labels=head.out_proj.weight.shape[0])
    make = lambda key: GLM(config, key)
    abstract: Any = jax.eval_shape(make, jax.random.key(0))
    return from_plain({**to_plain(model), "classifier": to_plain(head)}, abstract)


def without_head(model: GLM) -> GLM:
    """The language model alone; its weights are shared with the one given."""
    bare = jax.tree.map(lambda x: x, model)
    bare.config, bare.classifier = model.config.replace(num_labels=0), None
    return bare


@dataclasses.dataclass(frozen=True)
class WithHead:
    """A method of fine-tuning that trains a scalar head as well."""

    inner: Method

    def prepare(self, model: GLM, key: Array) -> GLM:
        if model.classifier is None:
            model = with_head(model, ClassificationHead(model.config, 1, key))
        return self.inner.prepare(model, key)

    def trained(self, model: GLM) -> Choice:
        chosen = self.inner.trained(model)
        return lambda path: path.startswith("classifier.") or chosen(path)

    def adapter(self, model: GLM) -> Adapter | None:
        return self.inner.adapter(model)
