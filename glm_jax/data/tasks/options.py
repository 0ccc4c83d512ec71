"""What a user may say about a task with a choice."""

from __future__ import annotations

import dataclasses
from typing import Literal

TaskName = Literal[
    "", "classify", "choice", "boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"
]
Loss = Literal["cross_entropy", "hinge", "generative", "mix", "adapet"]


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """A task instead of texts to write: classes, or candidates for a blank.

    Raises:
      ValueError: a setting that is out of range.
    """

    name: TaskName = ""
    """classify: a class for each text, by a new head on the network; choice: the right one of a
    line's choices (inputs_pretokenized, choices_pretokenized, label); or a task of SuperGLUE in its
    own JSONL, read through GLM's cloze patterns: the answers are words that fill a blank."""
    pattern: int = 0
    """Which of the task's cloze patterns (GLM used boolq 4, cb 3, wic 1, wsc 2, the others 0)."""
    loss: Loss = "cross_entropy"
    """Over the candidates (GLM used mix for wsc); hinge: that every wrong one stays 1 below the
    right one; generative: -log p of the right one alone; mix: cross_entropy and generative; adapet:
    log p of the wrong ones less that of the right one. classify has cross_entropy."""
    text_fields: tuple[str, ...] = ("text",)
    """For classify: fields that make up the text, joined by line breaks."""
    label_field: str = "label"
    """Field with the class, or with the index of the right choice."""
    labels: tuple[str, ...] = ()
    """For classify: names of the classes in their order; none: those of the data, sorted."""
    length_penalty: float = 0.0
    """The power of a candidate's length that divides its log probability; 0: none."""

    def __post_init__(self) -> None:
        if self.pattern < 0 or self.length_penalty < 0:
            raise ValueError("pattern and length_penalty are 0 or more")
        if self.name == "classify" and self.loss != "cross_entropy":
            raise ValueError(f"classify has the loss cross_entropy, not {self.loss}")
