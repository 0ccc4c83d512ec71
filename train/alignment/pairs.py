"""A run that learns from pairs: DPO, and reward models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import numpy as np
from etils import epath

from glm_jax.ckpts import load_model
from glm_jax.config import GLMConfig
from glm_jax.data.preference import IndexBatches, Pairs, some_batches
from glm_jax.errors import UserError
from glm_jax.nn import joined_layers
from glm_jax.peft import attach, combine
from glm_jax.sharding import local_rows
from train.alignment.head import WithHead, scoring, with_head
from train.alignment.heldout import HeldoutParts
from train.alignment.losses import dpo_loss, ranking_loss
from train.alignment.reference import ReferenceFile, reference_logps
from train.alignment.run import AlignRun, shown_format
from train.finetuning.base import as_stored
from train.finetuning.methods import Method
from train.trainer import LossFn, StepFn, make_train_step


@dataclasses.dataclass(frozen=True)
class PairRun(AlignRun):
    """Learns from pairs of answers, of which one was chosen."""

    pairs: dict[str, Pairs] = dataclasses.field(default_factory=dict)
    """By split: train, and heldout where something is held out."""

    def with_data(self) -> Self:
        splits = ["train"] + ["heldout"] * self.has_heldout
        opened = {
            split: Pairs(
                self.args.data,
                self.tokenizer,
                self.config,
                shown_format(self),
                split=split,
                seq_len=self.args.seq_len,
            )
            for split in splits
        }
        return dataclasses.replace(self, pairs=opened)

    def rows(self, split: str, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """A batch of some pairs of a split."""
        return self.pairs[split].rows(indices)

    def loss(self) -> LossFn:
        raise NotImplementedError

    def train_batches(self) -> IndexBatches:
        args = self.args
        return IndexBatches(
            lambda indices: self.rows("train", indices),
            len(self.pairs["train"]),
            batch_size=args.batch_size,
            rows=local_rows(self.mesh, args.batch_size),
            seed=args.seed,
        )

    def heldout(self) -> Callable[[Any], dict[str, float]] | None:
        if "heldout" not in self.pairs:
            return None
        size = self.args.batch_size
        count = min(len(self.pairs["heldout"]), size * self.args.heldout_batches)
        make = lambda indices: self.rows("heldout", indices)
        batches = some_batches(make, range(count), size, local_rows(self.mesh, size))
        evaluate = HeldoutParts(self.loss(), batches, self.mesh)
        return lambda trained: evaluate(combine(trained, self.rest))

    def step(self) -> StepFn:
        args = self.args
        step = make_train_step(
            self.loss(),
            args.optimizer.make(),
            schedule=args.optimizer.schedule.fn(),
            seed=args.seed,
            accumulate=args.accumulate,
        )
        return lambda state, batch: step(state, batch, self.rest)


@dataclasses.dataclass(frozen=True)
class DpoRun(PairRun):
    """Direct preference optimisation."""

    reference: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """By split: log probabilities [N, 2] of the answers before the first step."""

    @classmethod
    def make(cls, args: Any) -> Self:
        run = super().make(args)
        file = ReferenceFile(run.place / "reference.npz", run._made_from())
        found = file.read()
        if found is None:
            model = run.before()
            with jax.set_mesh(run.mesh):
                found = {
                    split: reference_logps(model, pairs, run.mesh, args.batch_size, args.compute)
                    for split, pairs in run.pairs.items()
                }
            file.write(found)
        return dataclasses.replace(run, reference=found)

    def rows(self, split: str, indices: Sequence[int]) -> dict[str, np.ndarray]:
        return {**super().rows(split, indices), "reference": self.reference[split][indices]}

    def loss(self) -> LossFn:
        return dpo_loss(self.args)

    def _made_from(self) -> dict[str, Any]:
        names = ("base", "adapter", "base_quant", "base_group", "seq_len", "chat_format")
        identity = self.identity()
        data = {split: pairs.fingerprint for split, pairs in self.pairs.items()}
        own = {name: identity[name] for name in names}
        return {**own, "compute": str(self.args.compute), "data": data}


@dataclasses.dataclass(frozen=True)
class RewardRun(PairRun):
    """A reward model: scores that rank answers."""

    @classmethod
    def network(cls, args: Any, stored: GLMConfig) -> GLMConfig:
        if stored.quantization != "none":
            raise UserError(
                f"{args.ckpt} holds {stored.quantization}, and a reward model is written whole, in "
                "floats; convert the model without --keep-quantized"
            )
        return scoring(super().network(args, stored), args.ckpt)

    @classmethod
    def chosen_method(cls, args: Any, config: GLMConfig) -> Method:
        return WithHead(super().chosen_method(args, config))

    def loss(self) -> LossFn:
        return ranking_loss(self.args)

    def export(self, model: Any, place: epath.Path) -> str:
        """Writes ``place/model``, a LoRA merged into it."""
        whole = joined_layers(combine(model, self.rest))
        adapter = self.method.adapter(whole)
        if adapter is not None:
            base = load_model(self.args.ckpt, mesh=self.mesh)
            assert whole.classifier is not None
            whole = with_head(attach(base, adapter), whole.classifier)
        target = place / "model"
        self.save(target, as_stored(whole, self.args.ckpt), whole.config)
        return f"reward model in {target}"
