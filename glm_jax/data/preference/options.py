"""What a user may say about data for alignment."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class PreferenceData:
    """What a model is aligned with. See docs/alignment.md.

    Raises:
      ValueError: a share that is none.
    """

    files: Annotated[tuple[str, ...], tyro.conf.arg(name="data")] = ()
    """JSONL files or globs (.jsonl, also .gz or .zst). A line of pairs (dpo, reward): {prompt,
    chosen, rejected}; of questions (grpo): {prompt, answer}. The prompt is a text, with history
    ([question, answer] pairs) where there is one, or a list of messages; also as messages."""
    prompt_column: str = "prompt"
    """Field with the prompt."""
    chosen_column: str = "chosen"
    """Field with the better answer."""
    rejected_column: str = "rejected"
    """Field with the worse answer."""
    answer_column: str = "answer"
    """Field with the right answer, which the reward function is given; it may be missing."""
    heldout: str = ""
    """File or glob to evaluate on; empty: a share of files."""
    heldout_percent: float = 5.0
    """Share of the examples that is kept for evaluation where there is no such file; 0: none."""
    on_bad: Literal["raise", "skip"] = "raise"
    """What to do with a line that cannot be read: stop with an error, or leave it out."""
    too_long: Literal["skip", "raise"] = "skip"
    """What to do with what does not fit seq_len: leave it out with a warning, or stop."""
    debias_length: bool = False
    """Pairs alone: leave pairs out until, among pairs whose answers differ alike in length, the
    longer one is chosen as often as the shorter (ChatGLM-RLHF)."""

    def __post_init__(self) -> None:
        if not 0 <= self.heldout_percent < 100:
            raise ValueError(f"heldout_percent {self.heldout_percent:g} is not below 100")
