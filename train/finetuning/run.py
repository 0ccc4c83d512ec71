"""A fine-tuning run: its data, its loss, its held-out evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self

from glm_jax.data import PARTS, make_finetune_loader
from glm_jax.peft import combine
from glm_jax.sharding import local_rows
from train.finetuning.base import TuningRun
from train.finetuning.options import Finetune
from train.heldout import Heldout
from train.losses import language_loss
from train.trainer import StepFn, make_train_step


@dataclasses.dataclass(frozen=True)
class FinetuneRun(TuningRun):
    """A run made ready."""

    args: Finetune

    def with_data(self) -> Self:
        self.train_batches().close()
        return self

    def loader(self, split: Any, num_epochs: int | None = None, num_workers: int | None = None):
        """This process's batches of one split."""
        args = self.args
        workers = args.data.num_workers if num_workers is None else num_workers
        return make_finetune_loader(
            dataclasses.replace(args.data, num_workers=workers),
            self.tokenizer,
            self.config,
            self.chat_format,
            split=split,
            batch_size=args.batch_size,
            seq_len=args.seq_len,
            seed=args.seed,
            rows=local_rows(self.mesh, args.batch_size),
            num_epochs=num_epochs,
        )

    def train_batches(self) -> Any:
        return self.loader("train")

    def heldout(self) -> Callable[[Any], dict[str, float]] | None:
        """Held-out loss of the task, and of the general data that is mixed in."""
        data = self.args.data
        names = ["task"] * bool(data.heldout or data.heldout_percent)
        names += ["general"] * bool(data.replay and data.heldout_percent)
        if not names:
            return None
        splits = {"task": "heldout", "general": "general"}
        loaders = {n: functools.partial(self.loader, splits[n], 1, 0) for n in names}
        loss = language_loss(self.args.compute, PARTS)
        evaluate = Heldout(loss, loaders, self.mesh, batches=self.args.heldout_batches)
        return lambda trained: evaluate(combine(trained, self.rest))

    def step(self) -> StepFn:
        args = self.args
        step = make_train_step(
            language_loss(args.compute, PARTS, embed_grad_scale=args.optimizer.embed_grad_scale),
            args.optimizer.make(),
            schedule=args.optimizer.schedule.fn(),
            seed=args.seed,
            accumulate=args.accumulate,
        )
        return lambda state, batch: step(state, batch, self.rest)

    def identity(self) -> dict[str, Any]:
        free = ("heldout_percent", "num_workers", "prefetch", "on_bad")
        data = {k: v for k, v in vars(self.args.data).items() if k not in free}
        return {**super().identity(), **{f"data_{name}": value for name, value in data.items()}}
