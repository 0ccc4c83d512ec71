"""What each method of ``python -m train.align`` has options for.

Neither the beta of DPO nor the weights of KL, of scores and of the language model's loss were
published with ChatGLM-RLHF: the numbers here are other papers' (named at each) or our own.
"""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Dpo:
    """Options of the method dpo."""

    beta: float = 0.1
    """How closely the policy is held to what it was; smaller: less (arXiv 2305.18290)."""
    smoothing: float = 0.0
    """Share of pairs that are taken to be labelled the wrong way round."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta:g}; it must be above 0")
        if not 0 <= self.smoothing < 0.5:
            raise ValueError(f"smoothing is {self.smoothing:g}; it is a share in [0, 0.5)")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Options of the method reward."""

    l2: float = 0.01
    """Weight of the squares of both scores, which keeps them bounded (ChatGLM-RLHF)."""

    def __post_init__(self) -> None:
        if not self.l2 >= 0:
            raise ValueError(f"l2 is {self.l2:g}; it must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Answering:
    """What the methods share that learn from a model's own answers."""

    group: int = 8
    """Answers to each prompt; it divides --batch-size."""
    max_new_tokens: int = 256
    """Tokens of the longest answer; prompts get the rest of --seq-len."""
    temperature: float = 1.0
    """Of the sampling. Only at 1 is what is sampled what the loss takes it for."""
    top_p: float = 1.0
    """Sample from the most likely tokens that hold this probability together."""
    updates: int = 1
    """Updates from one batch of answers; one step of the run makes them all."""
    clip: float = 0.2
    """How far a token's probability may move from where it was sampled."""
    kl: float = 0.04
    """Weight of the divergence from the policy before the first step; 0 spares its memory."""

    def __post_init__(self) -> None:
        for name, least in (("group", 1), ("max_new_tokens", 1), ("updates", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("temperature", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; it must be above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p:g}; it is above 0 and at most 1")
        if not self.kl >= 0:
            raise ValueError(f"kl is {self.kl:g}; it must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Grpo(Answering):
    """Options of the method grpo (arXiv 2402.03300); its KL is a part of the loss."""

    baseline: Literal["group", "reference"] = "group"
    """What a reward is compared with: the mean of the group, or the reward of the answer that the
    data gives (ChatGLM-RLHF)."""
    scale: bool = True
    """Divide by the standard deviation of the group; ChatGLM-RLHF normalises nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group == 1 and (self.baseline == "group" or self.scale):
            raise ValueError(
                "group 1 has nothing to compare an answer with: take more, or baseline reference "
                "and scale False"
            )


@dataclasses.dataclass(frozen=True)
class Ppo(Answering):
    """Options of the method ppo (arXiv 1707.06347); its KL is taken off the reward, token by token
    (arXiv 2203.02155)."""

    group: int = 1
    """Answers to each prompt; it divides --batch-size."""
    updates: int = 4
    """Updates from one batch of answers; one step of the run makes them all."""
    baseline: Literal["none", "reference"] = "none"
    """reference: a reward counts from that of the answer which the data gives (ChatGLM-RLHF)."""
    whiten: bool = True
    """Advantages of a batch have mean 0 and deviation 1. Rewards stay as they are (ChatGLM-RLHF
    normalises nothing)."""
    discount: float = 1.0
    """What a reward is worth one token earlier."""
    trace: float = 0.95
    """Lambda of generalised advantage estimation (arXiv 1506.02438): 1 trusts rewards alone, 0 the
    next token's value."""
    value_weight: float = 0.1
    """Weight of the value head's squared error."""
    value_clip: float = 0.2
    """How far a value may move from what it was when its token was sampled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name):g}; it is a share in [0, 1]")
        for name in ("value_weight", "value_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; it must be above 0")
