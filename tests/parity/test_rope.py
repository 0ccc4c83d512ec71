"""Rotary tables: exact at any length, and where the references' half-precision ones agree."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from glm_jax.config import preset
from glm_jax.ops.rope import frequencies
from tests.parity import angles
from tests.parity.golden import folder

POSITIONS = [10, 8191, 131071, 1048575]


def tables(config, positions):
    at = np.tile(np.asarray(positions, np.int32), (1, 2, 1))
    return [x[0] for x in angles.tables(config, at)]


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm3-6b", "glm-4-9b-chat", "glm-4-9b-chat-1m"])
def test_angles_are_right_to_a_millionth_at_one_million(name):
    config = preset(name)
    dim = config.rope_dim
    freqs = 1.0 / config.rope_theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    if config.rope_float16_freqs:
        freqs = freqs.astype(np.float32).astype(np.float16).astype(np.float64)
    angles = np.outer(np.array(POSITIONS, np.float64), freqs)
    cos, sin = tables(config, POSITIONS)
    assert np.abs(cos - np.cos(angles)).max() < 1e-6
    assert np.abs(sin - np.sin(angles)).max() < 1e-6


@pytest.fixture(scope="module")
def half():
    with safe_open(folder("rope_half") / "cases.safetensors", "flax") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("name", "config"), [("chatglm3-6b", "chatglm3-6b"), ("glm-4-9b", "glm-4-9b-chat")]
)
def test_tables_that_were_rounded_at_the_end(half, name, config):
    """ChatGLM3 and GLM-4 compute in float32 and round: ours, rounded, are one step off at most."""
    theirs = half[f"{name}/cache"]
    for ours, mine in zip(tables(preset(config), half["positions"]), (0, 1), strict=True):
        error = jnp.abs(jnp.asarray(ours) - theirs[..., mine].astype(jnp.float32)).max()
        # float16 keeps 11 bits, bfloat16 8; their float32 angles add up to 2048 * 6e-8.
        assert error < 2.0 ** (-12 if theirs.dtype == jnp.float16 else -9) + 2048 * 1.2e-7


def test_chatglm_6b_rounds_its_frequencies_and_in_half_its_angles(half):
    """Its float16 tables multiply in float16 too, which no other precision repeats: up to where the
    product is exact they are ours, and the frequencies are ours everywhere."""
    config = preset("chatglm-6b")
    freqs = frequencies(config.rope_dim, config.rope_theta, float16=True)
    assert np.array_equal(freqs, np.asarray(half["chatglm-6b/inv_freq_fp16"], np.float64))
    near = np.asarray(half["positions"]) <= 1
    cos = tables(config, half["positions"])[0][near]
    theirs = np.asarray(half["chatglm-6b/cos_fp16"], np.float32)[near, :32]
    assert np.abs(cos - theirs).max() < 2.0**-11


def test_chatglm2_in_half_precision_loses_its_positions(half):
    """Frequencies and positions in float16 (a quirk that we do not repeat): its tables are right
    near the start only."""
    cos = tables(preset("chatglm2-6b"), half["positions"])[0]
    error = np.abs(cos - np.asarray(half["chatglm2-6b/cache"], np.float32)[..., 0]).max(axis=1)
    assert error[np.asarray(half["positions"]) <= 1].max() < 2e-3
    assert error.max() > 0.5
