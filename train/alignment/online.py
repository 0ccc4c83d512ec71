"""A run that learns from rewards: the model answers, is rewarded, and is updated, in every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Array, Float

from glm_jax.chat import chat_format, turn_ends
from glm_jax.ckpts import load_generation
from glm_jax.data.preference import Answer, IndexBatches, Questions, answer_rows, answer_to
from glm_jax.data.preference.questions import Prompt
from glm_jax.errors import UserError
from glm_jax.peft import combine
from glm_jax.sharding import local_rows
from train.alignment.losses import policy_loss
from train.alignment.rewards import Reward, RewardFunction, RewardModel
from train.alignment.rollout import Sampler
from train.alignment.run import AlignRun, shown_format
from train.finetuning.base import fingerprint
from train.trainer import Batch, TrainState, make_train_step, put_batch

_TRAINING, _HELDOUT = range(2)  # what a seed of the sampling is for


@dataclasses.dataclass(frozen=True)
class OnlineRun(AlignRun):
    """Learns from the model's own answers."""

    questions: dict[str, Questions] = dataclasses.field(default_factory=dict)
    """By split: train, and heldout where something is held out."""
    sampler: Any = None
    reference: Any = None
    """The policy before the first step; None where nothing is compared with it."""

    @classmethod
    def make(cls, args: Any) -> Self:
        if jax.process_count() > 1:
            raise UserError(
                f"--method {args.method} runs on one process: its answers are written there"
            )
        if bool(args.reward) == bool(args.reward_model):
            raise UserError(
                f"--method {args.method} is told what an answer is worth by --reward "
                "module:function or by --reward-model DIR; give one of the two"
            )
        run = super().make(args)
        return dataclasses.replace(
            run, reference=run.before(lean=True) if args.answering.kl else None
        )

    def with_data(self) -> Self:
        args, name = self.args, shown_format(self)
        stops = turn_ends(
            self.config, self.tokenizer, chat_format(name), load_generation(args.ckpt)
        )
        reward = self._reward()
        sampler = Sampler(args.answering, reward, self.tokenizer, name, stops, args.compute)
        opened = {
            split: Questions(
                args.data,
                self.tokenizer,
                name,
                split=split,
                most=args.seq_len - args.answering.max_new_tokens,
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
            repeat=args.answering.group,
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

    def identity(self) -> dict[str, Any]:
        model = self.args.reward_model
        return {**super().identity(), "reward_model": model and fingerprint(model)}

    def _reward(self) -> Reward:
        args = self.args
        if args.reward:
            return RewardFunction(args.reward)
        return RewardModel(
            args.reward_model, self.mesh, args.seq_len, args.batch_size, args.compute
        )


class OnlineStep:
    """``(state, batch) -> (state, metrics)``, of which only the judging and the updates are
    programs."""

    def __init__(self, run: Any):
        args = run.args
        self.run, self._schedule = run, args.optimizer.schedule.fn()
        self._update = make_train_step(
            policy_loss(args),
            args.optimizer.make(),
            schedule=self._schedule,
            seed=args.seed,
            accumulate=args.accumulate,
        )

    def judged(
        self, policy: Any, rows: Batch, scores: Float[np.ndarray, "P G"]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """What ``policy_loss`` needs beside the rows, and numbers to report.

        Args:
          scores: rewards, less that of the reference answer where it is the baseline.
        """
        raise NotImplementedError

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        run, step, skipped = self.run, int(state.step), int(state.skipped)
        own = run.args.answering
        questions = np.asarray(batch["question"])[:: own.group]
        prompts = [run.questions["train"][int(i)] for i in questions]
        policy = combine(state.model, run.rest)
        made = run.sampler(policy, prompts, own.group, (run.args.seed, _TRAINING, step))
        rows = put_batch(self._rows(prompts, made.answers), run.mesh)
        scores = made.rewards - self._expected(prompts)[:, None]
        judged, numbers = self.judged(policy, rows, scores)
        del policy  # its buffers are given away below
        metrics: dict[str, Any] = {}
        for _ in range(own.updates):
            state, metrics = self._update(state, {**rows, **judged}, run.rest)
        done = own.updates * (step - skipped + 1) - 1
        said = {
            "reward": made.rewards.mean(),
            "reward_std": made.rewards.std(axis=1).mean(),
            "length": np.mean([len(each.answer) for each in made.answers]),
            "stopped": made.stopped,
            "lr": self._schedule(done),
        }
        return self._counted(state, step), {**metrics, **numbers, **said}

    def _rows(self, prompts: list[Prompt], answers: list[Answer]) -> dict[str, np.ndarray]:
        """The rows of the answers, and with ``--lm`` of the data's."""
        args, config = self.run.args, self.run.config
        rows = answer_rows(answers, config, args.seq_len)
        if args.lm:
            right = [a for p in prompts for a in [self._right(p)] * args.answering.group]
            shown = answer_rows(right, config, args.seq_len)
            rows |= {f"right_{name}": x for name, x in shown.items()}
        return rows

    def _expected(self, prompts: list[Prompt]) -> Float[np.ndarray, " P"]:
        """What each reward counts from."""
        if self.run.args.answering.baseline != "reference":
            return np.zeros(len(prompts), np.float32)
        return self.run.sampler.reward(prompts, [_answer(prompt) for prompt in prompts])

    def _right(self, prompt: Prompt) -> Answer:
        run = self.run
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
        if self.run.args.answering.updates == 1:
            return state
        number = jax.device_put(np.int32(step + 1), state.step.sharding)
        return dataclasses.replace(state, step=number)


def _answer(prompt: Prompt) -> str:
    if not prompt.answer:
        raise UserError(
            f"{prompt.place}: no answer is given, which --lm and baseline reference need"
        )
    return prompt.answer
