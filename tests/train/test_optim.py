import jax
import jax.numpy as jnp
import numpy as np
import optax

from glm_jax.ckpts.trees import flat_paths, to_plain
from glm_jax.nn import GLM
from tests.train.small import CONFIG
from train.optim import Optimizer, decay_mask
from train.schedules import Schedule


def test_norms_and_biases_do_not_decay():
    model = jax.eval_shape(lambda: GLM(CONFIG, jax.random.key(0)))
    mask = flat_paths(to_plain(decay_mask(model)))
    spared = {name for name, decays in mask.items() if not decays}
    expected = {name for name in mask if name.endswith("bias") or "norm" in name}
    assert spared == expected
    assert mask["embedding"] and mask["positions.block_position"]
    assert mask["layers.attention.q_proj.weight"]
    assert "layers.attention.q_proj.bias" in spared and "final_norm.weight" in spared


def test_decay_is_decoupled():
    """Without a gradient AdamW only shrinks: p - lr * decay * p."""
    params = {"weight": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)}
    schedule = Schedule(peak=0.5, decay_steps=10, warmup=0.0, shape="constant")
    tx = Optimizer(schedule=schedule, weight_decay=0.1).make()
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["weight"], 2.0 - 0.5 * 0.1 * 2.0)
    np.testing.assert_allclose(new["bias"], 2.0)


def test_clips_the_global_norm():
    tx = Optimizer(clip=1.0).make()
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.full(1, 30.0), "b": jnp.full(1, 40.0)}
    _, state = tx.update(grads, tx.init(params), params)
    mu = optax.tree_utils.tree_get(state, "mu")  # (1 - beta1) * clipped gradient
    np.testing.assert_allclose([mu["a"][0], mu["b"][0]], [0.06, 0.08], rtol=1e-5)
