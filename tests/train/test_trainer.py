import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.nn import GLM, Compute
from glm_jax.sharding import MeshConfig, make_mesh
from tests.train.small import CONFIG, QUIET, batch
from train.losses import blank_infilling_loss
from train.optim import Optimizer
from train.schedules import Schedule
from train.trainer import init_state, make_train_step, put_batch, sharded_init

ONE = make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])


def optimizer(peak: float = 3e-3, **options) -> Optimizer:
    schedule = Schedule(peak, decay_steps=10, warmup=0.0, shape="constant")
    return Optimizer(schedule=schedule, **{"weight_decay": 0.0, **options})


@functools.cache  # compiling is what costs
def compiled(config, mesh, accumulate, opt):
    init = functools.partial(init_state, lambda key: GLM(config, key), opt.make())
    loss = blank_infilling_loss(config, Compute(), opt.embed_grad_scale)
    return init, make_train_step(
        loss, opt.make(), schedule=opt.schedule.fn(), accumulate=accumulate
    )


def start(config=QUIET, mesh=ONE, accumulate=1, opt=None):
    init, step = compiled(config, mesh, accumulate, opt or optimizer())
    return sharded_init(init, jax.random.key(0), mesh), step


def leaves(state) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves((state.model, state.opt_state))]


@pytest.mark.slow
def test_accumulation_is_one_big_batch():
    """Micro-batches with 24, 16, 20, ... predicted tokens average by token, not by micro-batch."""
    rows = put_batch(batch(8), ONE)
    counts = np.asarray(batch(8)["loss_weights"]).sum(axis=1)
    assert counts.min() < 0.7 * counts.max()
    whole, (step, micro) = start(), start(accumulate=4)
    state_1, metrics_1 = whole[1](whole[0], rows)
    state_4, metrics_4 = micro(step, rows)
    for name in ("loss", "grad_norm", "mask", "smask", "tokens"):
        assert float(metrics_4[name]) == pytest.approx(float(metrics_1[name]), rel=1e-5)
    for a, b in zip(leaves(state_1), leaves(state_4), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_one_batch_is_learnt_by_heart():
    state, step = start()
    rows = put_batch(batch(4), ONE)
    for _ in range(150):
        state, metrics = step(state, rows)
    assert float(metrics["loss"]) < 0.05


def test_loss_per_objective():
    _, metrics = (lambda s: s[1](s[0], put_batch(batch(4), ONE)))(start())
    assert np.isfinite([metrics["mask"], metrics["smask"]]).all()
    assert np.isnan(metrics["gmask"])  # none in this batch


def test_dropout_depends_on_the_step():
    def loss_at(number):
        state, step = start(CONFIG)
        state = dataclasses.replace(state, step=jnp.asarray(number))
        return float(step(state, put_batch(batch(4), ONE))[1]["loss"])

    assert loss_at(0) == loss_at(0) != loss_at(1)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    state, step = start()
    good, bad = batch(4), batch(4)
    bad["loss_weights"] = bad["loss_weights"] * np.float32(np.nan)
    state, _ = step(state, put_batch(good, ONE))
    before = leaves(state)
    for times in (1, 2):
        state, metrics = step(state, put_batch(bad, ONE))
        assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (times, times)
    for a, b in zip(before, leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(state.step) == 3
    state, metrics = step(state, put_batch(good, ONE))
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (2, 0)
    assert any((a != b).any() for a, b in zip(before, leaves(state), strict=True))


def test_skipped_steps_do_not_move_the_schedule():
    schedule = Schedule(peak=1e-3, decay_steps=100, warmup=0.5)
    state, step = start(opt=Optimizer(schedule=schedule))
    bad = batch(4)
    bad["loss_weights"] = np.where(bad["loss_weights"] > 0, np.float32("inf"), np.float32(0))
    state, _ = step(state, put_batch(batch(4), ONE))
    for _ in range(3):
        state, metrics = step(state, put_batch(bad, ONE))
        assert float(metrics["lr"]) == pytest.approx(1e-3 / 50)


def test_embedding_gradient_shrink():
    """GLM-130B: the looked-up embeddings pass a tenth of their gradient, the loss is the same."""
    untied, found = QUIET.replace(tied_head=False), {}
    for scale in (1.0, 0.1):
        loss = blank_infilling_loss(untied, Compute(), scale)
        value = lambda m, rows, loss=loss: loss(m, rows, None)[0][0]
        model = GLM(untied, jax.random.key(0))
        found[scale] = jax.value_and_grad(value)(model, put_batch(batch(2), ONE))
    assert float(found[1.0][0]) == pytest.approx(float(found[0.1][0]), rel=1e-6)
    whole, shrunk = (found[s][1].embedding[...] for s in (1.0, 0.1))
    np.testing.assert_allclose(shrunk, 0.1 * whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        found[1.0][1].head[...], found[0.1][1].head[...], rtol=1e-4, atol=1e-6
    )


@pytest.fixture(scope="module")
def alone():
    return loss_and_gradients(ONE)


def loss_and_gradients(mesh):
    init, _ = compiled(QUIET, ONE, 1, optimizer())
    loss = blank_infilling_loss(QUIET, Compute())

    def mean(model, rows):
        (total, weight), _ = loss(model, rows, None)
        return total / weight

    with jax.set_mesh(mesh):
        model = sharded_init(init, jax.random.key(0), mesh).model
        value, grads = jax.jit(jax.value_and_grad(mean))(model, put_batch(batch(8), mesh))
        return float(value), [np.asarray(g) for g in jax.tree.leaves(grads)]


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 1, "fsdp": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 1, "fsdp": 2, "tensor": 4}, marks=pytest.mark.slow),
        {"data": 1, "fsdp": 2, "context": 4},
    ],
    ids=str,
)
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(sizes, alone):
    value, grads = loss_and_gradients(make_mesh(MeshConfig(**sizes)))
    assert value == pytest.approx(alone[0], abs=1e-5)
    for a, b in zip(grads, alone[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_accumulation_on_a_mesh():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        state, step = start(mesh=mesh, accumulate=2)
        _, metrics = step(state, put_batch(batch(8), mesh))
        there = {k: float(v) for k, v in metrics.items()}
    state, step = start()
    _, metrics = step(state, put_batch(batch(8), ONE))
    for name in ("loss", "grad_norm", "tokens"):
        assert there[name] == pytest.approx(float(metrics[name]), rel=1e-5)


def test_state_starts_in_its_shards():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    with jax.set_mesh(mesh):
        state, _ = start(mesh=mesh)
    weight = state.model.layers.mlp.up_proj.weight[...]
    assert weight.addressable_shards[0].data.size * 8 == weight.size
    mu = [x for x in jax.tree.leaves(state.opt_state) if x.shape == weight.shape]
    assert all(x.sharding == weight.sharding for x in mu) and len(mu) == 2


def test_bfloat16_compute_keeps_float32_weights():
    opt = optimizer()
    loss = blank_infilling_loss(QUIET, Compute(dtype="bfloat16", remat="full"))
    step = make_train_step(loss, opt.make(), schedule=opt.schedule.fn())
    state, _ = start()
    state, metrics = step(state, put_batch(batch(4), ONE))
    assert np.isfinite(float(metrics["loss"]))
    assert {x.dtype for x in jax.tree.leaves(state.model)} == {jnp.dtype("float32")}
