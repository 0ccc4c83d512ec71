"""A run that starts from a model, made ready from its options: base, method, mesh, state, export.

What it learns from, and what it minimises, the classes above it say.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Self

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
from glm_jax.errors import UserError
from glm_jax.nn import GLM, joined_layers
from glm_jax.peft import attach, combine, partition, save_adapter
from glm_jax.peft.partition import Choice
from glm_jax.quantization import quantized_config
from glm_jax.sharding import make_mesh, tree_shardings
from glm_jax.text import load_tokenizer
from glm_jax.text.tokenizer import Tokenizer
from train.finetuning.methods import Method, as_type, method_of
from train.finetuning.options import Tuning
from train.run import check_directory
from train.session import check_shapes
from train.trainer import TrainState, abstract_state


@dataclasses.dataclass(frozen=True)
class TuningRun:
    """A run made ready."""

    args: Any
    config: GLMConfig
    """Of the base as it is held, integers included."""
    tokenizer: Tokenizer
    chat_format: str
    mesh: Mesh
    method: Method
    rest: Any = None
    """The frozen half of the model."""
    first: Any = None
    """The trained half before the first step, where that is small: an adapter."""

    @classmethod
    def make(cls, args: Any) -> Self:
        """Checks the options and loads the base.

        Raises:
          UserError: something does not fit together, a path or the data is bad.
        """
        if not args.data.files:
            raise UserError("--data is empty; it names the files to learn from")
        check_directory(args.output)
        stored, tokenizer = load_config(args.ckpt), load_tokenizer(args.ckpt)
        config = cls.network(args, stored)
        try:
            mesh = make_mesh(args.mesh)
        except ValueError as error:
            raise UserError(str(error)) from None
        check_shapes(args, config, mesh)
        method, name = cls.chosen_method(args, config), _chat_format(args, tokenizer)
        # What is wrong with the data is said before the base is read.
        run = cls(args, config, tokenizer, name, mesh, method).with_data()
        trained, rest = run.load()
        return dataclasses.replace(run, rest=rest, first=trained if run.small else None)

    @classmethod
    def network(cls, args: Any, stored: GLMConfig) -> GLMConfig:
        """The config of the base as it is held.

        Raises:
          UserError: what is stored cannot be trained in this way.
        """
        if args.trains in ("full", "freeze") and stored.quantization != "none":
            raise UserError(
                f"{args.ckpt} holds {stored.quantization}, which cannot be trained: use lora or "
                "ptuning, or convert the model without --keep-quantized"
            )
        if args.merge and stored.quantization != "none":
            raise UserError(f"--merge: {args.ckpt} holds {stored.quantization}, not floats")
        if args.base_quant == "none":
            return stored
        return quantized_config(stored, args.base_quant, args.base_group or None)

    @classmethod
    def chosen_method(cls, args: Any, config: GLMConfig) -> Method:
        return method_of(args, config)

    def with_data(self) -> Self:
        """The run with its data looked at.

        Raises:
          UserError: the data is bad.
        """
        raise NotImplementedError

    @property
    def small(self) -> bool:
        """Whether what is trained is small beside the base."""
        return self.args.trains in ("lora", "ptuning")

    def title(self) -> str:
        trained = sum(x.size for x in jax.tree.leaves(self.abstract().model))
        return (
            f"{self.args.method} on {self.args.ckpt}: {num_params(self.config) / 1e6:,.1f}M "
            f"parameters, {trained / 1e6:,.3g}M trained"
        )

    def flops_per_token(self) -> int:
        """Beside frozen weights the backward pass has no weight gradients: half of its work."""
        if self.args.trains == "full":
            return flops_per_token(self.config, self.args.seq_len)
        return 2 * flops_per_token(self.config, self.args.seq_len, backward=False)

    def init(self, key: Array) -> TrainState:
        """A state of the right shapes; pure. Values of the model's own weights are random."""
        return self._state(self._halves(key, jnp.float32)[0])

    def trained(self, model: GLM) -> Choice:
        """Which parameters of a prepared model are trained."""
        return self.method.trained(model)

    def begin(self, model: GLM, key: Array) -> GLM:
        """The base with what it needs beside the method's; pure."""
        del key
        return model

    def abstract(self) -> TrainState:
        return abstract_state(self.init, self.mesh)

    def abstract_rest(self) -> Any:
        """Shapes, types and shardings of the frozen half, beside an adapter."""
        dtype = jnp.dtype(self.args.compute.dtype)
        return abstract_state(lambda key: self._halves(key, dtype)[1], self.mesh)

    def fresh(self) -> TrainState:
        """The state before the first step."""
        trained = self.first if self.small else self.load()[0]
        shardings = tree_shardings(jax.eval_shape(self.init, jax.random.key(0)), self.mesh)
        donated = () if self.small else (0,)
        return jax.jit(self._state, out_shardings=shardings, donate_argnums=donated)(trained)

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint to continue it exactly."""
        args = self.args
        same = ["method", "seed", "batch_size", "seq_len", "accumulate", "param_dtype"]
        same += ["base_quant", "base_group", "adapter", "freeze", "rslora"]
        same += [name for name in vars(args) if name.startswith(("lora_", "prefix_"))]
        return {
            **{name: getattr(args, name) for name in same},
            "chat_format": self.chat_format,
            "tokenizer": self.tokenizer.fingerprint,
            "base": fingerprint(args.ckpt),
        }

    def whole(self, model: Any) -> GLM:
        """The network that is written, of its trained half."""
        return combine(model, self.rest)

    def export(self, model: Any, place: epath.Path) -> str:
        """Writes ``place/adapter``, or ``place/model``, or both."""
        whole = joined_layers(self.whole(model))
        adapter, target = self.method.adapter(whole), place / "model"
        if adapter is None:
            self.save(target, as_stored(whole, self.args.ckpt), whole.config)
            return f"model in {target}"
        if self.chat_format:
            settings = {**adapter.settings, "prompt_format": self.chat_format}
            adapter = dataclasses.replace(adapter, settings=settings)
        save_adapter(place / "adapter", adapter, overwrite=True)
        if not self.args.merge:
            return f"adapter in {place / 'adapter'}, for {self.args.ckpt}"
        base = load_model(self.args.ckpt, mesh=self.mesh)  # in its own type, not as it is held
        self.save(target, attach(base, adapter), base.config)
        return f"adapter in {place / 'adapter'}, merged model in {target}"

    def save(self, target: epath.Path, model: GLM, config: GLMConfig) -> None:
        """A model directory, with the tokenizer and the settings of the base."""
        tokenizer = epath.Path(self.args.ckpt) / "tokenizer"
        save_model(
            target, model, config, tokenizer_dir=tokenizer, generation=self.generation(),
            overwrite=True,
        )  # fmt: skip

    def generation(self) -> dict[str, Any]:
        """The base's generation.json; the model answers in the format that it was trained in."""
        named = {"prompt_format": self.chat_format} if self.chat_format else {}
        return load_generation(self.args.ckpt) | named

    def load(self) -> tuple[Any, Any]:
        """The base with what the method adds, as (trained, rest)."""
        args = self.args
        # What stays as it is lies in the type it is used in; what will be written, in its own.
        model = load_model(
            args.ckpt, mesh=self.mesh, dtype=args.compute.dtype if self.small else None
        )
        if args.base_quant != "none":
            model = glm_jax.quantize(model, args.base_quant, args.base_group or None)
            model = jax.device_put(model, tree_shardings(model, self.mesh))
        key = jax.random.key(args.seed)
        model = self.method.prepare(self.begin(model, key), key)
        return partition(model, self.trained(model))

    def _halves(self, key: Array, dtype: Any) -> tuple[Any, Any]:
        model = self.method.prepare(GLM(self.config, key, param_dtype=dtype), key)
        return partition(model, self.trained(model))

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


def _chat_format(args: Tuning, tokenizer: Tokenizer) -> str:
    """A format's name; empty where the model has none (GLM's base models)."""
    from glm_jax.chat import chat_format

    named = args.chat_format or str(load_generation(args.ckpt).get("prompt_format") or "")
    if named:
        return chat_format(named).name
    try:
        return chat_format(tokenizer.family).name
    except UserError:
        return ""


def as_stored(model: GLM, ckpt: str) -> GLM:
    """In the types of the directory it came from; a part that is new there stays as it is."""
    stored, plain = stored_shapes(epath.Path(ckpt).absolute()), to_plain(model)
    cast = lambda x, s: x.astype(s.dtype)
    own = {name: jax.tree.map(cast, plain[name], shapes) for name, shapes in stored.items()}
    return from_plain({**plain, **own}, model)
