"""A fine-tuning run: its data, its loss, its held-out evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self

import jax
from etils import epath
from jaxtyping import Array

from glm_jax.ckpts import load_model
from glm_jax.data import PARTS, make_finetune_loader
from glm_jax.data.finetune import open_records
from glm_jax.data.tasks import Loss
from glm_jax.errors import UserError
from glm_jax.nn import GLM, Compute, joined_layers
from glm_jax.peft import attach, combine
from glm_jax.peft.partition import Choice
from glm_jax.sharding import local_rows
from train.finetuning.answers import Answers
from train.finetuning.base import TuningRun
from train.finetuning.options import Finetune
from train.finetuning.tasks import TaskData, task_loss, with_head
from train.heldout import Heldout
from train.losses import language_loss
from train.optim import Optimizer
from train.trainer import StepFn, make_train_step


@functools.cache
def _step(
    optimizer: Optimizer,
    compute: Compute,
    seed: int,
    accumulate: int,
    label_smoothing: float,
    chooses: Loss | None,
) -> Any:
    """One function for runs of the same options, so that the second finds it compiled."""
    scale = optimizer.embed_grad_scale
    return make_train_step(
        task_loss(compute, chooses)
        if chooses
        else language_loss(compute, PARTS, embed_grad_scale=scale, label_smoothing=label_smoothing),
        optimizer.make(),
        schedule=optimizer.schedule.fn(),
        seed=seed,
        accumulate=accumulate,
    )


@dataclasses.dataclass(frozen=True)
class FinetuneRun(TuningRun):
    """A run made ready."""

    args: Finetune
    task: TaskData | None = None
    """Where it is trained to choose, not to write."""

    def with_data(self) -> Self:
        run = self
        if self.args.task.name:
            task = TaskData.open(self.args.task, self.args.data)
            config = self.config.replace(num_labels=len(task.labels) or self.config.num_labels)
            run = dataclasses.replace(self, task=task, config=config)
        run.train_batches().close()
        return run

    def begin(self, model: GLM, key: Array) -> GLM:
        return with_head(model, self.config, key)

    def trained(self, model: GLM) -> Choice:
        """What the method trains, and a head that is new."""
        chosen = super().trained(model)
        return lambda path: chosen(path) or path.startswith("classifier.")

    def loader(self, split: Any, num_epochs: int | None = None, num_workers: int | None = None):
        """This process's batches of one split."""
        args = self.args
        if self.task:
            return self.task.loader(
                split, self.tokenizer, self.config, batch_size=args.batch_size,
                seq_len=args.seq_len, seed=args.seed, rows=local_rows(self.mesh, args.batch_size),
            )  # fmt: skip
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
        if self.task and not self.task.splits["heldout"]:
            return None
        names = ["task"] * bool(data.heldout or data.heldout_percent)
        names += ["general"] * bool(data.replay and data.heldout_percent)
        if not names:
            return None
        splits = {"task": "heldout", "general": "general"}
        loaders = {n: functools.partial(self.loader, splits[n], 1, 0) for n in names}
        compute, batches = self.args.compute, self.args.heldout_batches
        if self.task:
            task = self.task
            loss = task_loss(compute, task.options.loss, task.classes, task.questions)
            choose = Heldout(loss, loaders, self.mesh, batches=batches, shares=task.shares)
            return lambda trained: task.numbers(choose(combine(trained, self.rest)))
        evaluate = Heldout(language_loss(compute, PARTS), loaders, self.mesh, batches=batches)
        answers = self._answers() if self.args.asking.metrics else lambda model: {}

        def numbers(trained: Any) -> dict[str, float]:
            model = combine(trained, self.rest)
            return evaluate(model) | answers(model)

        return numbers

    def _answers(self) -> Answers:
        args = self.args
        if jax.process_count() > 1:
            raise UserError("--asking.metrics generates answers on one host only")
        return Answers(
            args.asking,
            open_records(args.data, "heldout", self.chat_format),
            self.tokenizer,
            self.chat_format,
            blank=args.data.blank,
            longest=args.seq_len,
            batch=args.batch_size,
            compute=args.compute,
        )

    def step(self) -> StepFn:
        step = self.jitted_step()
        return lambda state, batch: step(state, batch, self.rest)

    def jitted_step(self) -> Any:
        """``(state, batch, rest) -> (state, metrics)``."""
        args = self.args
        return _step(
            args.optimizer,
            args.compute,
            args.seed,
            args.accumulate,
            args.label_smoothing,
            args.task.loss if self.task else None,
        )

    def identity(self) -> dict[str, Any]:
        free = ("heldout_percent", "num_workers", "prefetch", "on_bad")
        data = {k: v for k, v in vars(self.args.data).items() if k not in free}
        return {
            **super().identity(),
            **{f"data_{name}": value for name, value in data.items()},
            **{f"task_{name}": value for name, value in vars(self.args.task).items()},
            "label_smoothing": self.args.label_smoothing,
        }

    def generation(self) -> dict[str, Any]:
        labels = {"labels": list(self.task.labels)} if self.task and self.task.labels else {}
        return super().generation() | labels

    def export(self, model: Any, place: epath.Path) -> str:
        """As of every run; a model with a head is written whole."""
        whole = joined_layers(combine(model, self.rest))
        adapter = self.method.adapter(whole)
        if adapter is None or not (self.task and self.task.labels):
            return super().export(model, place)
        base = load_model(self.args.ckpt, mesh=self.mesh)  # in its own type, not as it is held
        merged = with_head(attach(base, adapter), self.config, jax.random.key(0))
        dtype = merged.embedding[...].dtype
        merged.classifier = jax.tree.map(lambda x: x.astype(dtype), whole.classifier)
        self.save(place / "model", merged, merged.config)
        return f"merged model in {place / 'model'}"
