"""One training step as a pure function, for pretraining and fine-tuning alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from glm_jax.peft import combine
from glm_jax.sharding import RULES, batch_shardings, constrain, local_rows, tree_shardings
from train.compiling import compiler_options

Batch = Mapping[str, Array]
Parts = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
"""Named shares of a loss, each (sum, weight): reported, never differentiated."""
LossFn = Callable[[Any, Batch, Array | None], tuple[tuple[Array, Array], Parts]]
"""(model, batch, dropout key or None) -> ((loss sum, weight), parts); nothing is averaged yet."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes."""

    step: Int[Array, ""]
    """Batches consumed, skipped ones included."""
    model: Any
    """What is trained: the whole network, or its half of ``glm_jax.peft.partition``."""
    opt_state: Any
    skipped: Int[Array, ""]
    """Steps whose loss or gradient was not finite; they changed neither model nor opt_state."""
    skipped_in_a_row: Int[Array, ""]


StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
"""(state, batch) -> (next state, numbers to report)."""


def init_state(
    make_model: Callable[[Array], Any], tx: optax.GradientTransformation, key: Array
) -> TrainState:
    """A fresh state. Pure: under ``jax.eval_shape`` it costs no memory."""
    model = make_model(key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, model, tx.init(model), zero, zero)


def abstract_state(init: Callable[[Array], Any], mesh: Mesh) -> Any:
    """Shapes, types and shardings of what ``init(key)`` would make on this mesh."""
    shapes = jax.eval_shape(lambda: init(jax.random.key(0)))
    with_sharding = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(with_sharding, shapes, tree_shardings(shapes, mesh))


def sharded_init(init: Callable[[Array], Any], key: Array, mesh: Mesh) -> Any:
    """``init(key)`` computed straight into its shards: no device ever holds the whole."""
    shardings = tree_shardings(jax.eval_shape(init, key), mesh)
    return jax.jit(init, out_shardings=shardings)(key)


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Array]:
    """This process's rows (numpy) as global arrays, cut over the mesh's batch axes.

    Args:
      batch: the rows ``glm_jax.sharding.local_rows`` names, in that order.
    """
    sharding = batch_shardings(mesh)
    shards = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    held = len(local_rows(mesh, shards))
    put = lambda v: jax.make_array_from_process_local_data(
        sharding, v, (len(v) * shards // held, *v.shape[1:])
    )
    return {name: put(value) for name, value in batch.items()}


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    schedule: Callable[[Array], Array],
    seed: int = 0,
    accumulate: int = 1,
    large_fusions: bool = False,
) -> StepFn:
    """The jitted step ``(state, batch) -> (state, metrics)``; the state given in is donated.

    Where ``state.model`` is a part of the network it takes the rest as a third argument, which has
    no gradient, no optimizer state, and stays where it is. It is compiled for the chips of the mesh
    that is active here.

    Args:
      loss_fn: see ``LossFn``. The gradient is that of (sum of losses) / (sum of weights) over the
        whole batch, however many tokens each micro-batch holds.
      schedule: maps the number of updates made to the learning rate, for the metrics.
      seed: with the step number it fixes the dropout keys.
      accumulate: micro-batches per update; it divides the batch.
      large_fusions: see ``Pretrain``.
    """

    def step(
        state: TrainState, batch: Batch, rest: Any = None
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        whole = lambda model, batch, key: loss_fn(
            model if rest is None else combine(model, rest), batch, key
        )
        (loss_sum, weight), parts, grads = _gradients(whole, state.model, batch, key, accumulate)
        total = jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
        grads = jax.tree.map(lambda g: (g / total).astype(g.dtype), grads)
        loss, norm = loss_sum / total, optax.global_norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = tx.update(grads, state.opt_state, state.model)
        model = optax.apply_updates(state.model, updates)
        # A select, not a branch: XLA fuses it into the update, and the buffers stay donated.
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "lr": schedule(state.step - state.skipped),
            "tokens": weight,
            **means(parts),
        }
        state = TrainState(
            step=state.step + 1,
            model=keep(model, state.model),
            opt_state=keep(opt_state, state.opt_state),
            skipped=state.skipped + ~good,
            skipped_in_a_row=jnp.where(good, 0, state.skipped_in_a_row + 1),
        )
        metrics |= {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
        return state, metrics

    options = compiler_options(large_fusions=large_fusions)
    return jax.jit(step, donate_argnums=0, compiler_options=options)


def make_eval_step(loss_fn: LossFn) -> Callable[[Any, Batch], Parts]:
    """The jitted ``(model, batch) -> parts`` without dropout; the whole loss is named ``loss``."""

    def evaluate(model: Any, batch: Batch) -> Parts:
        total, parts = loss_fn(model, batch, None)
        return {"loss": total, **parts}

    return jax.jit(evaluate)


def means(parts: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Each part's average; NaN where it has no weight, that is where it did not occur."""
    return {
        name: jnp.where(weight > 0, loss / jnp.maximum(weight, 1e-9), jnp.nan)
        for name, (loss, weight) in parts.items()
    }


def _gradients(loss_fn: LossFn, model: Any, batch: Batch, key: Array, accumulate: int):
    """Sums over micro-batches of ((loss, weight), parts, gradient of the loss sum)."""

    def one(micro: Batch, key: Array):
        def loss_sum(model: Any):
            (loss, weight), parts = loss_fn(model, micro, key)
            return loss, (weight, parts)

        (loss, (weight, parts)), grads = jax.value_and_grad(loss_sum, has_aux=True)(model)
        return (loss, weight), parts, grads

    if accumulate == 1:
        return one(batch, key)
    micros = {name: _split(x, accumulate) for name, x in batch.items()}
    keys = jax.random.split(key, accumulate)
    shapes = jax.eval_shape(one, {name: x[0] for name, x in micros.items()}, keys[0])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    add = lambda sums, xs: (jax.tree.map(jnp.add, sums, one(*xs)), None)
    return jax.lax.scan(add, zeros, (micros, keys))[0]


def _split(x: Array, parts: int) -> Array:
    """[B, ...] to [parts, B / parts, ...]. Micro-batch i takes rows i, i + parts, ...: so each
    device keeps its own rows and nothing moves."""
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
    return constrain(jnp.moveaxis(x, 1, 0), None, "batch", *(None,) * (x.ndim - 2))
