"""What a user may say about fine-tuning data: one frozen dataclass that tyro turns into options."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

Form = Literal["auto", "prompt_response", "conversations", "messages", "seq2seq", "text"]


@dataclasses.dataclass(frozen=True)
class FinetuneData:
    """What a model is fine-tuned on, and how it becomes batches. See docs/finetuning.md.

    Raises:
      ValueError: a share or a length that is none.
    """

    files: Annotated[tuple[str, ...], tyro.conf.arg(name="data")] = ()
    """JSONL files or globs (.jsonl, also .gz or .zst); or the path of a pair of text files with
    one example a line, without its endings .source and .target."""
    form: Form = "auto"
    """How a line says its example: prompt_response ({prompt, response, history} or columns of your
    choice), conversations (ChatGLM3), messages (GLM-4, OpenAI), seq2seq (source and target), text
    (plain text to go on pretraining with); auto looks at its fields."""
    prompt_column: str = ""
    """Field with the question; empty: prompt, or content beside summary."""
    response_column: str = ""
    """Field with the answer; empty: response, or summary."""
    history_column: str = ""
    """Field with earlier [question, answer] pairs; empty: history, where there is one."""
    text_column: str = "text"
    """Field with the text, of the form text."""
    blank: str = ""
    """For pairs in GLM's base models, which fill blanks: where the blank of a source without one
    is, such as '[sMASK] Content: {}'; empty: behind it, [sMASK] or, without that, [MASK]."""
    turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are learned (as in the release: all for ChatGLM3, last for
    GLM-4's combine: True). Models with rounds read each learned turn as an example of its own."""
    max_source_length: int = 0
    """Tokens to keep of a prompt, counted as the releases count; 0: what fits a row."""
    max_target_length: int = 0
    """Tokens to keep of an answer, counted as the releases count; 0: what fits a row."""
    too_long: Literal["cut", "skip", "raise"] = "cut"
    """What to do with an example that is longer: cut it, as the releases do, leave it out, or stop
    with an error."""
    packing: bool = True
    """Several examples share a row, each seeing only itself; otherwise a row holds one."""
    balance: bool = False
    """Every conversation counts the same however long its answers are (LongAlign); otherwise every
    learned token does."""
    infilling: str = "demo"
    """For plain text in models that fill blanks: a name in glm_jax.data.INFILLING_PRESETS."""
    heldout: str = ""
    """File or glob to evaluate on; empty: a share of files."""
    heldout_percent: float = 5.0
    """Share of the examples that is kept for evaluation where there is no such file; 0: none."""
    replay: tuple[str, ...] = ()
    """General data mixed in against forgetting: files as above, of any form. The share kept for
    evaluation (heldout_percent) probes what is forgotten."""
    replay_ratio: float = 0.2
    """Share of general examples among all, where there is replay."""
    replay_form: Form = "auto"
    """How a line of the general data says its example."""
    on_bad: Literal["raise", "skip"] = "raise"
    """What to do with a line that cannot be read: stop with an error, or count it and go on."""
    open_rows: int = 16
    """Rows that each stream packs at once; more leave less padding and delay examples more."""
    num_workers: int = 0
    """Worker processes; 0 works in a thread of this process. The batches are the same."""
    prefetch: int = 4
    """Batches made ahead of their use."""

    def __post_init__(self) -> None:
        for name in ("max_source_length", "max_target_length"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 (free) or more")
        if not 0 <= self.heldout_percent < 100:
            raise ValueError(f"heldout_percent {self.heldout_percent:g} is not below 100")
        if self.replay and not 0 < self.replay_ratio < 1:
            raise ValueError(f"replay_ratio {self.replay_ratio:g} is not between 0 and 1")
