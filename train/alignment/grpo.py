"""A run that learns from rewards: the model answers, is rewarded, and is updated, in every step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glm_jax.chat import chat_format, turn_ends
from glm_jax.ckpts import load_generation
from glm_jax.data.preference import IndexBatches, Questions, answer_rows, answer_to
from glm_jax.data.preference.questions import Prompt
from glm_jax.errors import UserError
from glm_jax.ops import preference
from glm_jax.peft import combine
from glm_jax.sharding import local_rows
from train.alignment.losses import answer_logps, policy_loss
from train.alignment.rewards import Reward
from train.alignment.rollout import Rollout, Sampler
from train.alignment.run import AlignRun, shown_format
from train.trainer import Batch, StepFn, TrainState, make_train_step, put_batch

_TRAINING, _HELDOUT = range(2)  # what a seed of the sampling is for


@dataclasses.dataclass(frozen=True)
class GrpoRun(AlignRun):
    """Group relative policy optimisation (arXiv 2402.03300)."""

    questions: dict[str, Questions] = dataclasses.field(default_factory=dict)
    """By split: train, and heldout where something is held out."""
    sampler: Any = None
    reference: Any = None
    """The policy before the first step; None where nothing is compared with it."""

    @classmethod
    def make(cls, args: Any) -> Self:
        if jax.process_count() > 1:
            raise UserError("--method grpo runs on one process: its answers are written there")
        run = super().make(args)
        return dataclasses.replace(run, reference=run.before(lean=True) if args.grpo.kl else None)

    def with_data(self) -> Self:
        args, name = self.args, shown_format(self)
        stops = turn_ends(
            self.config, self.tokenizer, chat_format(name), load_generation(args.ckpt)
        )
        sampler = Sampler(args.grpo, Reward(args.reward), self.tokenizer, name, stops, args.compute)
        opened = {
            split: Questions(
                args.data,
                self.tokenizer,
                name,
                split=split,
                most=args.seq_len - args.grpo.max_new_tokens,
            )
            for split in ["train"] + ["heldout"] * self.has_heldout
        }
        return dataclasses.replace(self, questions=opened, sampler=sampler)

    def train_batches(self) -> IndexBatches:
        """Batches that say which question each row answers."""
        args = self.args
        return IndexBatches(
            lambda indices: {"question": np.array(indices, np.int32)},
            len(self.questions["train"]),
            batch_size=args.batch_size,
            rows=local_rows(self.mesh, args.batch_size),
            seed=args.seed,
            repeat=args.grpo.group,
        )

    def heldout(self) -> Callable[[Any], dict[str, float]] | None:
        """The mean reward of one answer to each held-out question, sampled as in training."""
        if "heldout" not in self.questions:
            return None
        questions = self.questions["heldout"]
        count = min(len(questions), self.args.batch_size * self.args.heldout_batches)
        prompts = [questions[i] for i in range(count)]

        def evaluate(trained: Any) -> dict[str, float]:
            seed = (self.args.seed, _HELDOUT)
            made = self.sampler(combine(trained, self.rest), prompts, 1, seed)
            return {"reward": float(made.rewards.mean()), "stopped": made.stopped}

        return evaluate

    def step(self) -> StepFn:
        return GrpoStep(self)


class GrpoStep:
    """``(state, batch) -> (state, metrics)``, of which only the updates are one program."""

    def __init__(self, run: GrpoRun):
        args = run.args
        self._run, self._options, self._schedule = run, args.grpo, args.optimizer.schedule.fn()
        self._logps = jax.jit(functools.partial(answer_logps, compute=args.compute))
        self._update = make_train_step(
            policy_loss(args),
            args.optimizer.make(),
            schedule=self._schedule,
            seed=args.seed,
            accumulate=args.accumulate,
        )

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        run, step, skipped = self._run, int(state.step), int(state.skipped)
        questions = np.asarray(batch["question"])[:: self._options.group]
        prompts = [run.questions["train"][int(i)] for i in questions]
        policy = combine(state.model, run.rest)
        seed = (run.args.seed, _TRAINING, step)
        made = run.sampler(policy, prompts, self._options.group, seed)
        rows = self._rows(policy, prompts, made)
        del policy  # its buffers are given away below
        metrics: dict[str, Array] = {}
        for _ in range(self._options.updates):
            state, metrics = self._update(state, rows, run.rest)
        done = self._options.updates * (step - skipped + 1) - 1
        said = {
            "reward": made.rewards.mean(),
            "reward_std": made.rewards.std(axis=1).mean(),
            "length": np.mean([len(each.answer) for each in made.answers]),
            "stopped": made.stopped,
            "lr": self._schedule(done),
        }
        return self._counted(state, step), {**metrics, **said}

    def _rows(self, policy: Any, prompts: list[Prompt], made: Rollout) -> dict[str, Array]:
        """What an update learns from; see ``losses.policy_loss``."""
        run = self._run
        advantages = preference.group_advantages(
            jnp.asarray(made.rewards), self._baseline(prompts), scale=self._options.scale
        )
        rows = answer_rows(made.answers, run.config, run.args.seq_len)
        rows["advantages"] = np.asarray(advantages).reshape(-1)
        if run.args.lm:
            right = [answer for p in prompts for answer in [self._right(p)] * self._options.group]
            shown = answer_rows(right, run.config, run.args.seq_len)
            rows |= {f"right_{name}": x for name, x in shown.items()}
        rows = put_batch(rows, run.mesh)
        rows["old"] = self._logps(policy, rows)
        if run.reference is not None:
            rows["reference"] = self._logps(run.reference, rows)
        return rows

    def _baseline(self, prompts: list[Prompt]) -> Float[Array, " P"] | None:
        if self._options.baseline == "group":
            return None
        reward = self._run.sampler.reward
        return jnp.array([reward(prompt, _answer(prompt)) for prompt in prompts], jnp.float32)

    def _right(self, prompt: Prompt):
        run = self._run
        answer = answer_to(
            prompt.messages, _answer(prompt), run.tokenizer, run.chat_format, prompt.tools
        )
        if len(answer) > run.args.seq_len:
            raise UserError(
                f"{prompt.place}: with its answer {len(answer)} ids do not fit in --seq-len "
                f"{run.args.seq_len}, and --lm learns it"
            )
        return answer

    def _counted(self, state: TrainState, step: int) -> TrainState:
        """With one step counted, however many updates there were."""
        if self._options.updates == 1:
            return state
        number = jax.device_put(np.int32(step + 1), state.step.sharding)
        return dataclasses.replace(state, step=number)


def _answer(prompt: Prompt) -> str:
    if not prompt.answer:
        raise UserError(
            f"{prompt.place}: no answer is given, which --lm and --grpo.baseline reference need"
        )
    return prompt.answer
