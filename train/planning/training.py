"""The steps of train.pretrain and train.finetune, lowered for devices that need not exist."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from glm_jax import sharding
from glm_jax.config import flops_per_token
from glm_jax.nn import GLM, Compute
from train import trainer
from train.finetuning.methods import method_of
from train.finetuning.options import DEFAULTS
from train.finetuning.run import FinetuneRun
from train.losses import blank_infilling_loss
from train.optim import Optimizer
from train.planning.program import Program, device_bytes
from train.planning.question import Question


def pretrain(question: Question, mesh: Mesh) -> Program:
    """Full-parameter AdamW with the loss of pretraining, dropout as the preset's."""
    config, optimizer = question.config, Optimizer()
    dtype, tx = jnp.dtype(question.param_dtype), optimizer.make()
    init = lambda key: trainer.init_state(lambda k: GLM(config, k, param_dtype=dtype), tx, key)
    loss_fn = blank_infilling_loss(config, _compute(question))
    step = trainer.make_train_step(
        loss_fn, tx, schedule=optimizer.schedule.fn(), large_fusions=question.large_fusions
    )
    state, batch = trainer.abstract_state(init, mesh), _batch(question, mesh)
    flops = flops_per_token(config, question.length)
    return _program(question, step.lower(state, batch), state, batch, flops)


def finetune(question: Question, mesh: Mesh) -> Program:
    """The method's step with its default options; what is frozen lies beside the state."""
    args = dataclasses.replace(
        DEFAULTS[question.method],
        ckpt="",
        batch_size=question.rows,
        seq_len=question.length,
        param_dtype=question.param_dtype,
        base_quant=question.quant,
        compute=_compute(question),
    )
    method = method_of(args, question.config)
    # Without a tokenizer, which only its data would need.
    run = FinetuneRun(args, question.config, cast(Any, None), "", mesh, method)
    state, rest, batch = run.abstract(), run.abstract_rest(), _batch(question, mesh)
    lowered = run.jitted_step().lower(state, batch, rest)
    return _program(question, lowered, state, batch, run.flops_per_token(), rest)


def _compute(question: Question) -> Compute:
    return Compute(dtype="bfloat16", remat=question.remat)


def _batch(question: Question, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    cut = sharding.batch_shardings(mesh)

    def array(kind, *middle):
        shape = (question.rows, *middle, question.length)
        return jax.ShapeDtypeStruct(shape, kind, sharding=cut)

    names = ("tokens", "targets", "k_start", "k_end", "objective")
    batch = {name: array(jnp.int32) for name in names}
    return batch | {"positions": array(jnp.int32, 2), "loss_weights": array(jnp.float32)}


def _program(
    question: Question,
    lowered: Any,
    state: trainer.TrainState,
    batch: Any,
    flops: int,
    rest: Any = None,
) -> Program:
    shares = {
        "parameters": device_bytes((state.model, rest)),
        "optimizer": device_bytes(state.opt_state),
        "batch": device_bytes(batch),
        "gradients": device_bytes(state.model),
    }
    tokens = question.rows * question.length
    return Program(lowered, shares, tokens * flops, tokens)
