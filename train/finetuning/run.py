"""A fine-tuning run made ready from its options: base, method, tokenizer, data, step."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array

import glm_jax
from glm_jax.ckpts import load_config, load_generation, load_model, save_model
from glm_jax.ckpts.model_dir import stored_shapes
from glm_jax.ckpts.trees import from_plain, to_plain
from glm_jax.config import GLMConfig, flops_per_token, num_params
from glm_jax.data import PARTS, make_finetune_loader
from glm_jax.errors import UserError
from glm_jax.nn import GLM, joined_layers
from glm_jax.peft import attach, combine, partition, save_adapter
from glm_jax.quantization import quantized_config
from glm_jax.sharding import local_rows, make_mesh, tree_shardings
from glm_jax.text import load_tokenizer
from glm_jax.text.tokenizer import Tokenizer
from train.finetuning.methods import Method, as_type, method_of
from train.finetuning.options import Finetune
from train.heldout import Heldout
from train.losses import language_loss
from train.run import check_directory
from train.session import check_shapes
from train.trainer import StepFn, TrainState, abstract_state, make_train_step


@dataclasses.dataclass(frozen=True)
class FinetuneRun:
    """A run made ready."""

    args: Finetune
    config: GLMConfig
    """Of the base as it is held, integers included."""
    tokenizer: Tokenizer
    chat_format: str
    mesh: Mesh
    method: Method
    rest: Any
    """The frozen half of the model."""
    first: Any
    """The trained half before the first step, where that is small: an adapter."""

    @classmethod
    def make(cls, args: Finetune) -> FinetuneRun:
        """Checks the options and loads the base.

        Raises:
          UserError: something does not fit together, a path or the data is bad.
        """
        if not args.data.files:
            raise UserError("--data is empty; it names the files to fine-tune on")
        check_directory(args.output)
        stored, tokenizer = load_config(args.ckpt), load_tokenizer(args.ckpt)
        config = stored
        if args.base_quant != "none":
            config = quantized_config(stored, args.base_quant, args.base_group or None)
        if args.method in ("full", "freeze") and stored.quantization != "none":
            raise UserError(
                f"{args.ckpt} holds {stored.quantization}, which cannot be trained: use lora or "
                "ptuning, or convert the model without --keep-quantized"
            )
        if args.merge and stored.quantization != "none":
            raise UserError(f"--merge: {args.ckpt} holds {stored.quantization}, not floats")
        try:
            mesh = make_mesh(args.mesh)
        except ValueError as error:
            raise UserError(str(error)) from None
        check_shapes(args, config, mesh)
        method, name = method_of(args, config), _chat_format(args, tokenizer)
        run = cls(args, config, tokenizer, name, mesh, method, None, None)
        run.train_batches().close()  # what is wrong with the data is said before the base is read
        trained, rest = run._load()
        small = args.method in ("lora", "ptuning")
        return dataclasses.replace(run, rest=rest, first=trained if small else None)

    def title(self) -> str:
        trained = sum(x.size for x in jax.tree.leaves(self.abstract().model))
        return (
            f"{self.args.method} on {self.args.ckpt}: {num_params(self.config) / 1e6:,.1f}M "
            f"parameters, {trained / 1e6:,.3g}M trained"
        )

    def flops_per_token(self) -> int:
        """Beside frozen weights the backward pass has no weight gradients: half of its work."""
        if self.args.method == "full":
            return flops_per_token(self.config, self.args.seq_len)
        return 2 * flops_per_token(self.config, self.args.seq_len, backward=False)

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

    def init(self, key: Array) -> TrainState:
        """A state of the right shapes; pure. Values of the model's own weights are random."""
        model = self.method.prepare(GLM(self.config, key), key)
        return self._state(partition(model, self.method.trained(model))[0])

    def abstract(self) -> TrainState:
        return abstract_state(self.init, self.mesh)

    def fresh(self) -> TrainState:
        """The state before the first step."""
        small = self.first is not None
        trained = self.first if small else self._load()[0]
        shardings = tree_shardings(jax.eval_shape(self.init, jax.random.key(0)), self.mesh)
        return jax.jit(
            self._state, out_shardings=shardings, donate_argnums=() if small else (0,)
        )(trained)  # fmt: skip

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
        """What a resumed run must share with its checkpoint to continue it exactly."""
        args, data = self.args, vars(self.args.data)
        same = ["method", "seed", "batch_size", "seq_len", "accumulate", "param_dtype"]
        same += ["base_quant", "base_group", "adapter", "freeze", "rslora"]
        same += [name for name in vars(args) if name.startswith(("lora_", "prefix_"))]
        free = ("heldout_percent", "num_workers", "prefetch", "on_bad")
        return {
            **{name: getattr(args, name) for name in same},
            **{f"data_{name}": value for name, value in data.items() if name not in free},
            "chat_format": self.chat_format,
            "tokenizer": self.tokenizer.fingerprint,
            "base": fingerprint(args.ckpt),
        }

    def export(self, model: Any, place: epath.Path) -> str:
        """Writes ``place/adapter``, or ``place/model``, or both."""
        whole = joined_layers(combine(model, self.rest))
        adapter, target = self.method.adapter(whole), place / "model"
        if adapter is None:
            self._save(target, _as_stored(whole, self.args.ckpt), self.config)
            return f"model in {target}"
        save_adapter(place / "adapter", adapter, overwrite=True)
        if not self.args.merge:
            return f"adapter in {place / 'adapter'}, for {self.args.ckpt}"
        base = load_model(self.args.ckpt, mesh=self.mesh)  # in its own type, not as it is held
        self._save(target, attach(base, adapter), base.config)
        return f"adapter in {place / 'adapter'}, merged model in {target}"

    def _save(self, target: epath.Path, model: GLM, config: GLMConfig) -> None:
        ckpt = epath.Path(self.args.ckpt)
        generation = load_generation(ckpt)
        tokenizer = ckpt / "tokenizer"
        save_model(
            target, model, config, tokenizer_dir=tokenizer, generation=generation, overwrite=True
        )

    def _load(self) -> tuple[Any, Any]:
        """The base with what the method adds, as (trained, rest)."""
        args = self.args
        # What stays as it is lies in the type it is used in; what will be written, in its own.
        dtype = args.compute.dtype if args.method in ("lora", "ptuning") else None
        model = load_model(args.ckpt, mesh=self.mesh, dtype=dtype)
        if args.base_quant != "none":
            model = glm_jax.quantize(model, args.base_quant, args.base_group or None)
            model = jax.device_put(model, tree_shardings(model, self.mesh))
        model = self.method.prepare(model, jax.random.key(args.seed))
        return partition(model, self.method.trained(model))

    def _state(self, trained: Any) -> TrainState:
        trained = as_type(trained, self.args.param_dtype)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, trained, self.args.optimizer.make().init(trained), zero, zero)


def fingerprint(ckpt: str) -> str:
    """Of a model directory's config and of the numbers of its weights."""
    root = epath.Path(ckpt)
    texts = [(root / "config.json").read_text()]
    sums = root / "checksums.json"
    texts += [json.dumps(json.loads(sums.read_text()), sort_keys=True)] if sums.exists() else []
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _chat_format(args: Finetune, tokenizer: Tokenizer) -> str:
    """A format's name; empty where the model has none (GLM's base models)."""
    from glm_jax.chat import chat_format

    named = args.chat_format or str(load_generation(args.ckpt).get("prompt_format") or "")
    if named:
        return chat_format(named).name
    try:
        return chat_format(tokenizer.family).name
    except UserError:
        return ""


def _as_stored(model: GLM, ckpt: str) -> GLM:
    """In the types of the directory it came from."""
    stored = stored_shapes(epath.Path(ckpt).absolute())
    plain = to_plain(model)
    return from_plain(jax.tree.map(lambda x, s: x.astype(s.dtype), plain, stored), model)
