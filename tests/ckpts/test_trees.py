import jax
import numpy as np
import optax

from glm_jax.ckpts.checksums import checksums, damaged
from glm_jax.ckpts.trees import differences, flat_paths, from_plain, to_plain
from glm_jax.nn import GLM
from tests.train.small import CONFIG


def test_a_model_becomes_names_and_arrays():
    model = GLM(CONFIG, jax.random.key(0))
    plain = to_plain(model)
    assert plain["layers"]["attention"]["q_proj"]["weight"].shape == (2, 4, 16, 64)
    assert "final_norm.bias" in flat_paths(plain)
    assert jax.tree.structure(from_plain(plain, model)) == jax.tree.structure(model)


def test_an_optimizer_state_comes_back():
    model = GLM(CONFIG, jax.random.key(0))
    state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(model)
    back = from_plain(to_plain(state), state)
    assert jax.tree.structure(back) == jax.tree.structure(state)


def test_differences_are_said_together():
    a = {"x": np.zeros(2), "y": {"z": np.zeros((2, 3))}, "gone": np.zeros(1)}
    b = {"x": np.zeros(2), "y": {"z": np.zeros((3, 2))}, "new": np.zeros(1)}
    assert differences(a, a) == ""
    assert differences(a, b) == "gone is missing; new is not expected; y.z is (3, 2), not (2, 3)"


def test_checksums_see_one_flipped_bit():
    plain = {"a": np.arange(6, dtype=np.float32), "b": {"c": np.zeros(3, np.float16)}}
    sums = checksums(plain)
    assert checksums(jax.tree.map(jax.numpy.asarray, plain)) == sums
    assert damaged(plain, sums) == []
    plain["b"]["c"].view(np.uint16)[1] ^= 1 << 9
    assert damaged(plain, sums) == ["b.c"]
