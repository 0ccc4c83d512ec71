"""Answers of the model's own, by the generator that chat and server use."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from glm_jax import generate
from glm_jax.chat import parse_reply
from glm_jax.data.preference import Answer
from glm_jax.data.preference.questions import Prompt
from glm_jax.nn import GLM, Compute
from glm_jax.text.prepare import decode_compute
from glm_jax.text.tokenizer import Tokenizer
from train.alignment.methods import Answering
from train.alignment.rewards import Reward


@dataclasses.dataclass(frozen=True)
class Rollout:
    """G answers to each of P prompts, one prompt's after another's."""

    answers: list[Answer]
    rewards: Float[np.ndarray, "P G"]
    stopped: float
    """Share of the answers that came to their end."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Lets a model answer, and has its answers rewarded."""

    options: Answering
    reward: Reward
    tokenizer: Tokenizer
    chat_format: str
    stops: tuple[int, ...]
    compute: Compute

    def __call__(
        self, model: GLM, prompts: Sequence[Prompt], group: int, seed: Sequence[int]
    ) -> Rollout:
        """Answers to prompts, the same for the same seed, which is one or more numbers."""
        seeds = np.random.default_rng(list(seed)).integers(2**32, size=len(prompts)).tolist()
        # By prompt and sample; the type that the loss computes in, so that both mean one policy.
        kind = dataclasses.replace(decode_compute(model, None), dtype=self.compute.dtype)
        found = generate(
            model,
            [prompt.ids for prompt in prompts],
            max_new_tokens=self.options.max_new_tokens,
            temperature=self.options.temperature,
            top_p=self.options.top_p,
            stop_ids=self.stops,
            seed=seeds,
            num_samples=group,
            vocab_limit=self.tokenizer.used,
            keep_stop=True,
            compute=kind,
        )
        every = found if group > 1 else [[ids] for ids in found]
        answers = [
            Answer(prompt.ids, ids)
            for prompt, samples in zip(prompts, every, strict=True)
            for ids in samples
        ]
        asked = [prompt for prompt in prompts for _ in range(group)]
        rewards = self.reward(asked, [self.text(answer.answer) for answer in answers])
        ended = [answer.answer[-1] in self.stops for answer in answers]
        return Rollout(answers, rewards.reshape(-1, group), float(np.mean(ended)))

    def text(self, ids: list[int]) -> str:
        """An answer as a user sees it."""
        ids = ids[:-1] if ids and ids[-1] in self.stops else ids
        return parse_reply(self.tokenizer.decode(ids), self.chat_format).content
