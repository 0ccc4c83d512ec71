"""Tasks with a choice: texts with a class each, and blanks with candidates to fill them."""

from glm_jax.data.tasks.examples import Choice, Labelled
from glm_jax.data.tasks.loader import TaskLoader
from glm_jax.data.tasks.options import Loss, TaskOptions
from glm_jax.data.tasks.records import (
    TaskRecords,
    class_names,
    open_task_records,
    question_numbers,
)
from glm_jax.data.tasks.superglue import PATTERNS

__all__ = [
    "PATTERNS",
    "Choice",
    "Labelled",
    "Loss",
    "TaskLoader",
    "TaskOptions",
    "TaskRecords",
    "class_names",
    "open_task_records",
    "question_numbers",
]
