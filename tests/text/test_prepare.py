"""What a backend copies of a model before it decodes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glm_jax
from glm_jax import nn
from glm_jax.ckpts import save_model
from glm_jax.config import preset
from glm_jax.errors import UserError
from glm_jax.ops.quantized import unpack_int4
from glm_jax.peft import lora_targets
from glm_jax.text import prepare as module
from glm_jax.text.prepare import _have_room, prepare

CONFIG = preset("chatglm2-6b").replace(
    vocab_size=40, num_layers=2, embed_dim=16, num_heads=4, head_dim=4, mlp_dim=24, max_seq_len=32,
    quantization="int4",
)  # fmt: skip
MATRICES = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("up_proj", "down_proj")}


@pytest.fixture(scope="module")
def model():
    return nn.GLM(CONFIG, jax.random.key(0))


def device(limit: int, used: int):
    return SimpleNamespace(memory_stats=lambda: {"bytes_limit": limit, "bytes_in_use": used})


def test_every_device_must_have_room_or_not_say():
    silent = SimpleNamespace(memory_stats=lambda: None)
    assert _have_room([device(100, 40), device(100, 30), silent], 60)
    assert not _have_room([device(100, 40), device(100, 41)], 60)


def test_a_tpu_gets_numbers_of_its_own_type_and_the_model_stays(model, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    ours = prepare(model)
    assert prepare(ours) is ours
    for part, names in MATRICES.items():
        for name in names:
            native, packed = (getattr(getattr(m.layers, part), name) for m in (ours, model))
            assert native.weight_q[...].dtype == jnp.int4
            assert packed.weight_q[...].dtype == jnp.int8
            numbers = np.int8(native.weight_q[...])
            right = unpack_int4(packed.weight_q[...])
            np.testing.assert_array_equal(numbers, right.reshape(numbers.shape))
    assert nn.packed_bytes(ours) == 0
    assert nn.packed_bytes(model) == 2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 24 * 16) // 2


def test_few_tokens_are_not_worth_it(model, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    few, many = (prepare(model, steps).layers.mlp.up_proj.weight_q for steps in (16, 256))
    assert few[...].dtype == jnp.int8 and many[...].dtype == jnp.int4


def test_where_memory_lacks_they_stay_packed(model, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(module, "_have_room", lambda devices, size: False)
    ours = prepare(model)
    assert nn.is_arranged(ours)
    assert ours.layers.mlp.up_proj.weight_q[...].dtype == jnp.int8


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_what_needs_the_weights_as_they_are_stored_says_so(backend, model, monkeypatch, tmp_path):
    floats = nn.GLM(CONFIG.replace(quantization="none"), jax.random.key(0))
    with monkeypatch.context() as there:
        there.setattr(jax, "default_backend", lambda: backend)
        integers, floats = prepare(model), prepare(floats)
    made_from = "the one that it was made from"
    with pytest.raises(UserError, match=f"glm_jax.prepare.*; save {made_from}"):
        save_model(tmp_path / "model", integers, integers.config)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=f"quantize {made_from}"):
        glm_jax.quantize(floats, "int8")
    with pytest.raises(UserError, match=f"adapt {made_from}"):
        lora_targets(floats, ["o_proj"])


def test_a_prepared_model_scores_and_generates_as_before(model):
    prompt = [[5, 6, 7]]
    found = [
        (glm_jax.score(m, prompt)[0], glm_jax.generate(m, prompt, max_new_tokens=6, stop_ids=[]))
        for m in (model, glm_jax.prepare(model))
    ]
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    assert found[0][1] == found[1][1]
