"""Held-out questions that the model answers itself while it is trained, compared with the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from glm_jax.chat import parse_reply, render
from glm_jax.data.finetune.blanks import blank_prompt
from glm_jax.data.finetune.forms import Content, Conversation, Pair
from glm_jax.data.finetune.records import Record
from glm_jax.errors import UserError
from glm_jax.nn import GLM, Compute, joined_layers
from glm_jax.text.generate import generate
from glm_jax.text.prepare import prepare
from glm_jax.text.tokenizer import Tokenizer
from train.finetuning import metrics
from train.finetuning.metrics import Metric, Unit


@dataclasses.dataclass(frozen=True)
class Asking:
    """Answers that are generated at every held-out evaluation, and how they are scored.

    Raises:
      ValueError: a count below 1.
    """

    metrics: tuple[Metric, ...] = ()
    """rouge (ROUGE-1, 2 and L), bleu (BLEU-4), exact (the same text), accuracy (the same but for
    case, punctuation and blanks); none: no answers are generated."""
    unit: Unit = "released"
    """What rouge and bleu count: words, characters, or as the releases do, words for ROUGE and
    characters for BLEU. Chinese words need jieba."""
    count: int = 50
    """Held-out questions to ask, from the first on."""
    max_new_tokens: int = 128
    """Of an answer."""
    min_new_tokens: int = 0
    """Of an answer."""
    beams: int = 1
    """Beam search over so many; 1 takes the likeliest token each time."""
    length_penalty: float = 1.0
    """With beams: the power of an answer's length that divides its log probability."""
    no_repeat_ngram: int = 0
    """No run of so many tokens comes twice; 0: no matter."""

    def __post_init__(self) -> None:
        for name in ("count", "max_new_tokens", "beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


class Question(NamedTuple):
    """A prompt as inference gives it to the model, and the answer that is right."""

    prompt: list[int]
    truth: str


class Answers:
    """Generates what the model answers and scores it; call it with a model.

    Args:
      records: held-out examples; the last turn of each conversation is the truth.
      blank: as for ``glm_jax.data.finetune.blanks``, for a model without a chat format.
      longest: tokens of a prompt; longer ones are left out.
      batch: prompts read at once.

    Raises:
      UserError: nothing is asked, or the metrics lack what they need.
    """

    def __init__(
        self,
        asking: Asking,
        records: Iterable[Record],
        tokenizer: Tokenizer,
        chat_format: str,
        *,
        blank: str,
        longest: int,
        batch: int,
        compute: Compute,
    ):
        self._asking, self._tokenizer, self._format = asking, tokenizer, chat_format
        self._batch, self._compute = batch, compute
        made = (question(r.content, tokenizer, chat_format, blank) for r in records)
        fitting = (q for q in made if q is not None and len(q.prompt) <= longest)
        self.questions = [q for q, _ in zip(fitting, range(asking.count), strict=False)]
        if not self.questions:
            raise UserError(
                f"--asking.metrics: no held-out example asks anything in {longest} tokens or fewer"
            )
        truths = [q.truth for q in self.questions]
        metrics.score(asking.metrics, truths, truths, asking.unit)  # what it needs is there

    def __call__(self, model: GLM) -> dict[str, float]:
        """The metrics, named ``answers/...``."""
        asking, truths = self._asking, [question.truth for question in self.questions]
        found = metrics.score(asking.metrics, self.answers(model), truths, asking.unit)
        return {f"answers/{name}": value for name, value in found.items()}

    def answers(self, model: GLM) -> list[str]:
        """What the model says to every question."""
        model = prepare(joined_layers(model))
        order = sorted(range(len(self.questions)), key=lambda i: len(self.questions[i].prompt))
        texts = [""] * len(order)
        for first in range(0, len(order), self._batch):
            chosen = order[first : first + self._batch]
            rows = [*chosen, *chosen[-1:] * (self._batch - len(chosen))]  # one number of rows
            prompts = [self.questions[i].prompt for i in rows]
            for i, ids in zip(chosen, self._generate(model, prompts), strict=False):
                texts[i] = self._read(ids)
        return texts

    def _generate(self, model: GLM, prompts: list[list[int]]) -> list[list[int]]:
        asking = self._asking
        return generate(
            model,
            prompts,
            max_new_tokens=asking.max_new_tokens,
            min_new_tokens=asking.min_new_tokens,
            num_beams=asking.beams,
            length_penalty=asking.length_penalty,
            no_repeat_ngram=asking.no_repeat_ngram,
            vocab_limit=self._tokenizer.used,
            stop_ids=_stops(model, self._tokenizer),
            compute=self._compute,
        )

    def _read(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=not self._format)
        return parse_reply(text, self._format).content if self._format else text.strip()


def question(
    content: Content, tokenizer: Tokenizer, chat_format: str, blank: str
) -> Question | None:
    """What is asked, and the right answer; None where the last turn is no answer in words."""
    if not chat_format:
        if not isinstance(content, Pair):
            return None
        return Question(blank_prompt(tokenizer, content.source, blank), content.target.strip())
    talk = content.conversation() if isinstance(content, Pair) else content
    if not isinstance(talk, Conversation):
        return None
    *before, last = talk.messages
    if last.role != "assistant" or last.tool_calls or last.metadata or not before:
        return None
    prompt = render(before, tokenizer, format=chat_format, tools=talk.tools)
    return Question(prompt, last.content.strip())


def _stops(model: GLM, tokenizer: Tokenizer) -> list[int]:
    special = tokenizer.special
    ends = [tokenizer.special_ids.get(name) for name in ("<|user|>", "<|observation|>")]
    ends += [*model.config.stop_ids, special.eos, special.eop]
    return sorted({i for i in ends if i is not None})
