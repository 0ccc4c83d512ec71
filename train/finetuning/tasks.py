"""What a step minimises where the model chooses: between classes, or between candidates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from glm_jax.config import GLMConfig
from glm_jax.data import FinetuneData
from glm_jax.data.tasks import (
    PATTERNS,
    Loss,
    TaskLoader,
    TaskOptions,
    TaskRecords,
    class_names,
    open_task_records,
    question_numbers,
)
from glm_jax.errors import UserError
from glm_jax.nn import GLM, ClassificationHead, Compute
from glm_jax.nn.attention import Keys
from glm_jax.text.tokenizer import Tokenizer
from train.trainer import Batch, LossFn, Parts


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The examples of a task, train and held out, and the names of its classes."""

    options: TaskOptions
    splits: Mapping[str, TaskRecords]
    labels: tuple[str, ...]

    @classmethod
    def open(cls, options: TaskOptions, data: FinetuneData) -> TaskData:
        """Reads all of it.

        Raises:
          UserError: a file, a line or a label is bad.
        """
        splits = {name: open_task_records(options, data, name) for name in ("train", "heldout")}
        labels = class_names(options, [*splits["train"], *splits["heldout"]])
        if options.name == "classify" and len(labels) < 2:
            raise UserError(f"all of the data is of the class {labels[0]}; there must be two")
        return cls(options, splits, labels)

    @property
    def classes(self) -> int:
        """How many, where each choice is one of the same classes; else 0."""
        name = self.options.name
        return len(self.labels) or (PATTERNS[name].classes if name in PATTERNS else 0)

    @functools.cached_property
    def questions(self) -> int:
        """How many are held out, where a question has several examples; else 0."""
        records = self.splits["heldout"]
        several = any(getattr(item, "question", "") for _, item in records)
        return max(question_numbers(records)) + 1 if several else 0

    @property
    def shares(self) -> tuple[str, ...]:
        """The parts of ``task_loss`` that are reported."""
        overlap = ("overlap",) * (self.options.name == "record")
        whole = ("whole",) * bool(self.questions)
        return ("accuracy", *(f"f1-{c}" for c in range(self.classes)), *overlap, *whole)

    def numbers(self, found: Mapping[str, float]) -> dict[str, float]:
        """What was measured by the names of SuperGLUE's metrics.

        Of two classes F1 is the last's (MultiRC's F1a), of more their mean (CB's macro-F1), and
        where candidates are mentions (ReCoRD) that of words; EM is of questions or of mentions.
        """
        each = [x for name, x in found.items() if name.startswith("task/f1-")]
        kept = {name: x for name, x in found.items() if not name.startswith("task/f1-")}
        if each:
            kept["task/f1"] = each[-1] if len(each) == 2 else float(np.nanmean(each))
        if "task/overlap" in kept:
            kept |= {"task/em": kept["task/accuracy"], "task/f1": kept.pop("task/overlap")}
        if "task/whole" in kept:
            kept["task/em"] = kept.pop("task/whole")
        return kept

    def loader(
        self, split: str, tokenizer: Tokenizer, config: GLMConfig, **rows: Any
    ) -> TaskLoader:
        """Batches of a split: without end of "train", once through "heldout"."""
        return TaskLoader(
            self.splits[split], self.options, self.labels, tokenizer, config,
            endless=split == "train", **rows,
        )  # fmt: skip


@functools.cache
def task_loss(
    compute: Compute, loss: Loss = "cross_entropy", classes: int = 0, questions: int = 0
) -> LossFn:
    """A loss over the classes or candidates of a ``glm_jax.data.tasks.TaskLoader``.

    Its part ``accuracy`` is the share of the examples whose best choice is a right one, and
    ``overlap`` what that has in common with one.

    Args:
      classes: where a choice means the same in every example, how many there are: class c's F1,
        ``2 tp / (2 tp + fp + fn)``, is the part ``f1-c``.
      questions: how many the examples belong to: the part ``whole`` has, of each question, how many
        of its examples are right, and how many there are.
    """

    def loss_fn(model: GLM, batch: Batch, key: Array | None) -> tuple[tuple[Array, Array], Parts]:
        read = candidate_scores if "answers" in batch else class_scores
        scores, weight, label = read(model, batch, compute, key), batch["weight"], batch["label"]
        credit = batch.get("credit", jax.nn.one_hot(label, scores.shape[1]))
        losses = choice_losses(scores, label.clip(0), credit, batch.get("valid", True), loss)
        learned = weight * (label >= 0)
        total, count = (losses * learned).sum(), learned.sum()
        chosen = scores.argmax(-1)
        of_chosen = lambda x: jnp.take_along_axis(x, chosen[:, None], axis=1)[:, 0] * weight
        parts = {"task": (total, count), "accuracy": (of_chosen(credit).sum(), weight.sum())}
        if "overlap" in batch:
            parts["overlap"] = of_chosen(batch["overlap"]).sum(), weight.sum()
        for c in range(classes):
            said, true = (chosen == c) * weight, (label == c) * weight
            parts[f"f1-{c}"] = 2 * (said * true).sum(), said.sum() + true.sum()
        if questions:
            per_question = lambda x: jax.ops.segment_sum(x, batch["question"], questions)
            parts["whole"] = per_question(of_chosen(credit)), per_question(weight)
        return (total, count), parts

    return loss_fn


def choice_losses(
    scores: Float[Array, "B C"],
    label: Int[Array, "B"],
    credit: Float[Array, "B C"],
    valid: Bool[Array, "B C"] | bool,
    loss: Loss,
) -> Float[Array, "B"]:
    """THUDM/GLM's losses (finetune_glm.py); ``scores`` are log probabilities s, y is the label.

    Other candidates that are right as well (``credit``) are left out. ``adapet``, the sum of the
    wrong ones' s less s_y, has no lower bound, as in that code.
    """
    right = jnp.take_along_axis(scores, label[:, None], axis=1)
    rivals = valid & (credit == 0)
    if loss == "hinge":
        return jnp.where(rivals, jax.nn.relu(1 + scores - right), 0).sum(-1)
    if loss == "adapet":
        return jnp.where(rivals, scores, 0).sum(-1) - right[:, 0]
    generative = -right[:, 0]
    if loss == "generative":
        return generative
    least = jnp.finfo(jnp.float32).min
    others = jax.nn.logsumexp(jnp.where(rivals, scores, least), axis=-1)
    cross_entropy = jnp.logaddexp(right[:, 0], others) + generative
    return cross_entropy + generative if loss == "mix" else cross_entropy


def class_scores(
    model: GLM, batch: Batch, compute: Compute, key: Array | None
) -> Float[Array, "B C"]:
    """Scores of the classes, by the model's head."""
    rows = _flat(batch)
    return model.classify(
        rows["tokens"],
        rows["positions"],
        jnp.zeros_like(rows["k_end"]),
        rows["k_end"],
        rows["lengths"],
        compute=compute,
        dropout_key=key,
    )


def candidate_scores(
    model: GLM, batch: Batch, compute: Compute, key: Array | None
) -> Float[Array, "B C"]:
    """Weighted sums of the log probabilities of each candidate's ids; those not there lose."""
    rows = _flat(batch)
    hidden = model.hidden(
        rows["tokens"],
        rows["positions"],
        Keys(jnp.zeros_like(rows["k_end"]), rows["k_end"]),
        compute=compute,
        dropout_key=key,
    )
    at = jnp.take_along_axis(hidden, rows["slots"][..., None], axis=1)
    log_p = jax.nn.log_softmax(model.logits(at))
    found = jnp.take_along_axis(log_p, rows["answers"][..., None], axis=-1)[..., 0]
    scores = (found * rows["answer_weights"]).sum(-1).reshape(batch["valid"].shape)
    return jnp.where(batch["valid"], scores, jnp.finfo(jnp.float32).min)


def _flat(batch: Batch) -> dict[str, Array]:
    """[B, C, ...] to [B C, ...]."""
    alone = ("label", "weight", "valid")
    return {k: x.reshape(-1, *x.shape[2:]) for k, x in batch.items() if k not in alone}


def with_head(model: GLM, config: GLMConfig, key: Array) -> GLM:
    """The model with a new classification head of ``config.num_labels``; pure.

    Raises:
      UserError: it has a head of another size already.
    """
    have = model.config.num_labels
    if have == config.num_labels:
        return model
    if have:
        raise UserError(f"the model has a head of {have} classes, the data {config.num_labels}")
    whole = jax.tree.map(lambda x: x, model)
    whole.config = config
    dtype = model.embedding[...].dtype
    whole.classifier = ClassificationHead(config, config.num_labels, key, dtype=dtype)
    return whole
