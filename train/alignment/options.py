"""Every option of ``python -m train.align``; defaults depend on the method."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Annotated, Literal

import tyro

from glm_jax.data.preference import PreferenceData
from glm_jax.nn import Compute
from train.alignment.methods import Answering, Dpo, Grpo, Ppo, Ranking
from train.finetuning.options import Tuning
from train.loop import Intervals
from train.optim import Optimizer
from train.schedules import Schedule

Method = Literal["dpo", "reward", "grpo", "ppo"]
Tune = Literal["lora", "full", "freeze"]
OWN = {"dpo": "dpo", "reward": "ranking", "grpo": "grpo", "ppo": "ppo"}
"""The options of each method alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Align(Tuning):
    """Aligns a model with preferences or rewards.

    CKPT is a model directory, best of a model that was fine-tuned on such answers before.

      python -m train.align ckpt/chatglm3-6b --method dpo --data pairs.jsonl --output runs/dpo
      python -m train.align ckpt/chatglm3-6b --method reward --data pairs.jsonl --output runs/rm
      python -m train.align ckpt/chatglm3-6b --method grpo --data questions.jsonl \\
          --reward mine:exact --output runs/grpo
      python -m train.align ckpt/chatglm3-6b --method ppo --data questions.jsonl \\
          --reward-model runs/rm/model --output runs/ppo

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
    than its other answers to the same prompt becomes likelier; ppo: the same, against what a value
    head expected."""
    tune: Tune = "lora"
    """lora: narrow matrices beside the layers' own; full: every weight; freeze: every weight but
    those that --freeze names."""
    output: str = "runs/align"
    """Directory of the run: checkpoints, log.jsonl, tensorboard, and the adapter or model."""
    data: Annotated[PreferenceData, tyro.conf.arg(name="")] = field(default_factory=PreferenceData)
    batch_size: int = 8
    """Pairs (dpo, reward) or answers (grpo, ppo) of one update, over all devices and
    micro-batches."""
    seq_len: int = 768
    """Tokens of the longest answer, its prompt included."""
    lora_dropout: float = 0.0
    """Dropout on what goes into the narrow matrices; for the method reward alone."""
    lm: float = 0.0
    """Weight of an added next-token loss, per token, on chosen answers (grpo, ppo: on the data's
    answers), against forgetting."""
    reward: str = ""
    """For grpo and ppo: the function that rewards an answer, as module:function."""
    reward_model: str = ""
    """Instead of a function: the directory of a model that --method reward wrote."""
    dpo: Dpo = field(default_factory=Dpo)
    ranking: Ranking = field(default_factory=Ranking)
    grpo: Grpo = field(default_factory=Grpo)
    ppo: Ppo = field(default_factory=Ppo)

    @property
    def trains(self) -> Tune:
        return self.tune

    @property
    def answering(self) -> Answering:
        """The options of a method that learns from the model's own answers."""
        return self.ppo if self.method == "ppo" else self.grpo

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lm >= 0:
            raise ValueError(f"--lm {self.lm:g} is below 0")
        own_answers = self.method in ("grpo", "ppo")
        if (self.reward or self.reward_model) and not own_answers:
            raise ValueError(
                "--reward and --reward-model reward the answers of --method grpo and ppo, not "
                f"{self.method}'s"
            )
        for method, name in OWN.items():
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
        if own_answers:
            self._check_answering(self.answering)

    def _check_answering(self, own: Answering) -> None:
        if self.data.debias_length:
            raise ValueError(f"--debias-length is about pairs, and {self.method} takes questions")
        if self.batch_size % own.group:
            raise ValueError(
                f"--{self.method}.group {own.group} does not divide --batch-size {self.batch_size}"
            )
        if own.max_new_tokens >= self.seq_len:
            raise ValueError(
                f"--{self.method}.max-new-tokens {own.max_new_tokens} leaves no room for a prompt "
                f"in --seq-len {self.seq_len}"
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
    "grpo": _defaults("grpo", 2e-5, batch_size=64, every=_OFTEN),
    "ppo": _defaults("ppo", 2e-5, batch_size=64, every=_OFTEN),
}
"""Learning rates are for LoRA; a tenth or less is usual for full (ChatGLM-RLHF's PPO: 1e-6)."""
