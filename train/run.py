"""A pretraining run made ready from its options: network, tokenizer, mesh, data, step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array

from glm_jax.ckpts import save_model
from glm_jax.config import GLMConfig, flops_per_token, num_params
from glm_jax.data import INFILLING_PRESETS, DataConfig, make_loader, open_corpus
from glm_jax.errors import UserError
from glm_jax.nn import GLM, Compute
from glm_jax.sharding import local_rows, make_mesh
from glm_jax.text import SentencePieceTokenizer, load_tokenizer, train_sentencepiece
from train.heldout import Heldout, objectives_of
from train.losses import blank_infilling_loss
from train.mixing import MixedBatches
from train.optim import Optimizer
from train.options import Pretrain
from train.session import check_shapes
from train.trainer import (
    Batch,
    StepFn,
    TrainState,
    abstract_state,
    init_state,
    make_train_step,
    sharded_init,
)


@functools.cache
def _step(
    config: GLMConfig,
    compute: Compute,
    optimizer: Optimizer,
    seed: int,
    accumulate: int,
    large_fusions: bool,
) -> StepFn:
    return make_train_step(
        blank_infilling_loss(config, compute, optimizer.embed_grad_scale),
        optimizer.make(),
        schedule=optimizer.schedule.fn(),
        seed=seed,
        accumulate=accumulate,
        large_fusions=large_fusions,
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """A run made ready: what ``main`` and the demo train with."""

    args: Pretrain
    config: GLMConfig
    tokenizer: SentencePieceTokenizer
    tokenizer_dir: Path
    mesh: Mesh

    @classmethod
    def make(cls, args: Pretrain) -> Run:
        """Checks everything that can be checked before the first step.

        Raises:
          UserError: an option, a path or the data is bad.
        """
        check_directory(args.output)
        tokenizer_dir = _ensure_tokenizer(args)
        tokenizer = load_tokenizer(tokenizer_dir)
        try:
            mesh = make_mesh(args.mesh)
            config = args.model.config(tokenizer.vocab_size, tokenizer.special)
        except ValueError as error:
            raise UserError(str(error)) from None
        check_shapes(args, config, mesh)
        _check_infilling(args)
        return cls(args, config, tokenizer, tokenizer_dir, mesh)

    def loader(
        self, split: str, *, objective: str | None = None, data: DataConfig | None = None
    ) -> Iterator[Batch]:
        """This process's batches of one split."""
        return make_loader(
            data or self.args.data,
            self.tokenizer,
            split=split,
            batch_size=self.args.batch_size,
            seq_len=self.args.seq_len,
            seed=self.args.seed,
            rows=local_rows(self.mesh, self.args.batch_size),
            num_epochs=1 if split == "heldout" else None,
            objective=objective,
        )

    def train_batches(self) -> Any:
        """The endless stream that is trained on, with its ``get_state`` and ``set_state``."""
        batches, other = self.loader("train"), self.args.multitask
        if not other.ratio:
            return batches
        mixed = self.loader("train", data=other.data)
        return MixedBatches(batches, mixed, other.ratio, self.args.seed)

    def heldout(self) -> Heldout:
        """Held-out evaluation of each objective that is trained."""
        data = dataclasses.replace(self.args.data, num_workers=0)
        return Heldout(
            blank_infilling_loss(self.config, self.args.compute),
            {
                name: functools.partial(self.loader, "heldout", objective=name, data=data)
                for name in objectives_of(INFILLING_PRESETS[self.args.data.infilling])
            },
            self.mesh,
            batches=self.args.heldout_batches,
        )

    def init(self, key: Array) -> TrainState:
        """A fresh train state; pure."""
        dtype = jnp.dtype(self.args.param_dtype)
        make_model = lambda key: GLM(self.config, key, param_dtype=dtype)
        return init_state(make_model, self.args.optimizer.make(), key)

    def abstract(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        return abstract_state(self.init, self.mesh)

    def fresh(self) -> TrainState:
        """The state before the first step."""
        return sharded_init(self.init, jax.random.key(self.args.seed), self.mesh)

    def step(self) -> StepFn:
        """The jitted train step; the same object for the same options, so it compiles once."""
        args = self.args
        return _step(
            self.config, args.compute, args.optimizer, args.seed, args.accumulate,
            args.large_fusions,
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint to continue it exactly."""
        args = self.args
        same = ("seed", "batch_size", "seq_len", "accumulate", "param_dtype")
        data = {k: v for k, v in vars(args.data).items() if k in ("source", "infilling", "isolate")}
        return {
            **{name: getattr(args, name) for name in same},
            **data,
            "open_rows": args.data.open_rows,
            "multitask_ratio": args.multitask.ratio,
            "tokenizer": self.tokenizer.fingerprint,
        }

    def title(self) -> str:
        return f"{self.args.preset}: {num_params(self.config) / 1e6:.1f}M parameters"

    def flops_per_token(self) -> int:
        return flops_per_token(self.config, self.args.seq_len)

    def export(self, model: GLM, place: epath.Path) -> str:
        """Writes ``place/model``."""
        target = place / "model"
        save_model(target, model, self.config, tokenizer_dir=self.tokenizer_dir, overwrite=True)
        return f"model in {target}"


def check_directory(output: str) -> None:
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be a directory: {error.strerror}") from None


def _ensure_tokenizer(args: Pretrain) -> Path:
    if args.tokenizer:
        return Path(args.tokenizer)
    if jax.process_count() > 1:
        raise UserError("--tokenizer is empty: a run on several hosts needs one that all can read")
    path = Path(args.output) / "tokenizer"
    if not path.exists():
        corpus = open_corpus(args.data, "train")
        print(f"training a tokenizer of {args.vocab_size} pieces on {corpus.label}", flush=True)
        train_sentencepiece((corpus[i] for i in range(len(corpus))), args.vocab_size, path)
    return path


def _check_infilling(args: Pretrain) -> None:
    if args.data.infilling not in INFILLING_PRESETS:
        known = ", ".join(INFILLING_PRESETS)
        raise UserError(f"--data.infilling {args.data.infilling} is unknown; there are {known}")
