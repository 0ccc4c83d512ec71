"""Every option of ``python -m train.align``; defaults depend on the method.

Neither the beta of DPO nor the weights of KL, of scores and of the language model's loss were
published with ChatGLM-RLHF: the numbers here are other papers' (named at each) or our own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Annotated, Literal

import tyro

from glm_jax.data.preference import PreferenceData
from glm_jax.nn import Compute
from train.finetuning.options import Tuning
from train.loop import Intervals
from train.optim import Optimizer
from train.schedules import Schedule

Method = Literal["dpo", "reward", "grpo"]
Tune = Literal["lora", "full", "freeze"]


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
class Grpo:
    """Options of the method grpo (arXiv 2402.03300)."""

    group: int = 8
    """Answers to each prompt, which are compared with each other; it divides --batch-size."""
    max_new_tokens: int = 256
    """Tokens of the longest answer; prompts get the rest of --seq-len."""
    temperature: float = 1.0
    """Of the sampling. Only at 1 is what is sampled what the loss takes it for."""
    top_p: float = 1.0
    """Sample from the most likely tokens that hold this probability together."""
    updates: int = 1
    """Updates from one batch of answers; one step of the run makes them all."""
    clip: float = 0.2
    """How far a token's probability may move from where it was sampled (PPO)."""
    kl: float = 0.04
    """Weight of the divergence from the policy before the first step; 0 spares its memory."""
    baseline: Literal["group", "reference"] = "group"
    """What a reward is compared with: the mean of the group, or the reward of the answer that the
    data gives (ChatGLM-RLHF)."""
    scale: bool = True
    """Divide by the standard deviation of the group; ChatGLM-RLHF normalises nothing."""

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
        if self.group == 1 and (self.baseline == "group" or self.scale):
            raise ValueError(
                "group 1 has nothing to compare an answer with: take more, or baseline reference "
                "and scale False"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Align(Tuning):
    """Aligns a model with preferences or rewards.

    CKPT is a model directory, best of a model that was fine-tuned on such answers before.

      python -m train.align ckpt/chatglm3-6b --method dpo --data pairs.jsonl --output runs/dpo
      python -m train.align ckpt/chatglm3-6b --method reward --data pairs.jsonl --output runs/rm
      python -m train.align ckpt/chatglm3-6b --method grpo --data questions.jsonl \\
          --reward mine:exact --output runs/grpo

    Pairs are {"prompt": ..., "chosen": ..., "rejected": ...}, questions {"prompt": ..., "answer":
    ...}. A reward is a Python function in a module that can be imported from here:

      def exact(prompt: str, response: str, answer: str | None) -> float: ...

    --tune says what is trained. A LoRA is written to OUTPUT/adapter, a whole model to OUTPUT/model;
    a reward model is always whole, with a head that scores an answer at its last token:

      glm_jax.load("runs/rm/model").classify(...)

    The same command goes on where it stopped, bit for bit, also after kill -9.
    """

    method: Method = "dpo"
    """dpo: the chosen answer becomes likelier than the rejected one, against what the model found
    before; reward: a score that ranks them so; grpo: the model answers, and what is rewarded more
    than its other answers to the same prompt becomes likelier."""
    tune: Tune = "lora"
    """lora: narrow matrices beside the layers' own; full: every weight; freeze: every weight but
    those that --freeze names."""
    output: str = "runs/align"
    """Directory of the run: checkpoints, log.jsonl, tensorboard, and the adapter or model."""
    data: Annotated[PreferenceData, tyro.conf.arg(name="")] = field(default_factory=PreferenceData)
    batch_size: int = 8
    """Pairs (dpo, reward) or answers (grpo) of one update, over all devices and micro-batches."""
    seq_len: int = 768
    """Tokens of the longest answer, its prompt included."""
    lora_dropout: float = 0.0
    """Dropout on what goes into the narrow matrices; for the method reward alone."""
    lm: float = 0.0
    """Weight of an added next-token loss, per token, on chosen answers (grpo: on the data's
    answers), against forgetting."""
    reward: str = ""
    """For grpo: the function that rewards an answer, as module:function."""
    dpo: Dpo = field(default_factory=Dpo)
    ranking: Ranking = field(default_factory=Ranking)
    grpo: Grpo = field(default_factory=Grpo)

    @property
    def trains(self) -> Tune:
        return self.tune

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lm >= 0:
            raise ValueError(f"--lm {self.lm:g} is below 0")
        if bool(self.reward) != (self.method == "grpo"):
            raise ValueError(
                "--reward module:function rewards the answers of --method grpo; give both or "
                "neither"
            )
        for name, method in (("dpo", "dpo"), ("ranking", "reward"), ("grpo", "grpo")):
            own = getattr(self, name)
            if self.method != method and own != type(own)():
                raise ValueError(f"--{name}.* is for --method {method}, not for {self.method}")
        if self.method == "reward" and self.merge:
            raise ValueError("--merge says nothing here: a reward model is written whole anyway")
        if self.method != "reward" and self.lora_dropout:
            raise ValueError(
                f"--lora-dropout is not for {self.method}, which compares probabilities with "
                "earlier ones"
            )
        if self.optimizer.embed_grad_scale != 1:
            raise ValueError("--optimizer.embed-grad-scale is not for alignment; leave it at 1")
        if self.method == "grpo":
            self._check_grpo()

    def _check_grpo(self) -> None:
        if self.data.debias_length:
            raise ValueError("--debias-length is about pairs, and grpo takes questions")
        if self.batch_size % self.grpo.group:
            raise ValueError(
                f"--grpo.group {self.grpo.group} does not divide --batch-size {self.batch_size}"
            )
        if self.grpo.max_new_tokens >= self.seq_len:
            raise ValueError(
                f"--grpo.max-new-tokens {self.grpo.max_new_tokens} leaves no room for a prompt in "
                f"--seq-len {self.seq_len}"
            )


def _defaults(method: Method, peak: float, **more) -> Align:
    steps = 1000
    return Align(
        ckpt=tyro.MISSING,
        method=method,
        steps=steps,
        optimizer=Optimizer(
            schedule=Schedule(peak, steps, 0.03, 0.1, "cosine"),
            weight_decay=0.0,
            beta2=0.999,
            eps=1e-8,
        ),
        compute=Compute(dtype="bfloat16", remat="full"),
        **more,
    )


_OFTEN = Intervals(log=1, heldout=100, save=100)
DEFAULTS: dict[str, Align] = {
    "dpo": _defaults("dpo", 5e-5, every=Intervals(10, 200, 200)),
    "reward": _defaults("reward", 1e-4, every=Intervals(10, 200, 200)),
    "grpo": _defaults("grpo", 2e-5, batch_size=64, reward=tyro.MISSING, every=_OFTEN),
}
"""Learning rates are for LoRA; a tenth or less is usual for full (ChatGLM-RLHF's PPO: 1e-6)."""
