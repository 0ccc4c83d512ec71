"""Data for alignment: pairs of answers, and prompts to answer, to batches."""

from glm_jax.data.preference.batches import IndexBatches, some_batches
from glm_jax.data.preference.forms import Preference, Question
from glm_jax.data.preference.options import PreferenceData
from glm_jax.data.preference.pairs import Pairs
from glm_jax.data.preference.questions import Questions
from glm_jax.data.preference.rows import Answer, answer_rows, answer_to

__all__ = [
    "Answer",
    "IndexBatches",
    "Pairs",
    "Preference",
    "PreferenceData",
    "Question",
    "Questions",
    "answer_rows",
    "answer_to",
    "some_batches",
]
