"""LoRA beside its matrices: the same as merged, beside integers, several at once."""

import jax
import numpy as np
import pytest

import glm_jax
from glm_jax import nn
from glm_jax.ckpts import save_model
from glm_jax.ckpts.trees import flat_paths
from glm_jax.errors import UserError
from glm_jax.ops.quantized import dequantize
from glm_jax.peft import (
    add_lora,
    attach,
    has_lora,
    lora_params,
    lora_targets,
    merge_lora,
    save_adapter,
)
from glm_jax.peft.lora import matrices
from tests.peft.test_adapters import CONFIG, INPUTS, MODEL, forward, lora_adapter

PATHS = [f"layers.attention.{name}_proj" for name in "qkvo"]
PATHS += [f"layers.mlp.{name}_proj" for name in ("gate", "up", "down")]


def test_beside_is_the_same_as_merged():
    beside = attach(MODEL, lora_adapter(), merge=False)
    assert has_lora(beside) and not has_lora(merge_lora(beside)) and not has_lora(MODEL)
    merged = forward(attach(MODEL, lora_adapter()), *INPUTS)
    scale = np.abs(merged).max()
    assert np.abs(merged - forward(MODEL, *INPUTS)).max() > 0.1 * scale
    np.testing.assert_allclose(forward(beside, *INPUTS), merged, atol=1e-5 * scale)
    assert np.array_equal(forward(merge_lora(beside), *INPUTS), merged)


@pytest.mark.parametrize("to", [pytest.param("int8", marks=pytest.mark.slow), "int4"])
def test_it_stays_beside_integers(to):
    integers = glm_jax.quantize(MODEL, to)
    attached = attach(integers, lora_adapter())
    assert has_lora(attached)
    floats = jax.tree.map(lambda x: x, MODEL)
    for path, module in matrices(floats).items():
        held = matrices(integers)[path]
        scale = held.weight_scale[...]
        module.weight[...] = dequantize(held.weight_q[...], scale, held.bits).reshape(
            module.weight.shape
        )
    expected = forward(attach(floats, lora_adapter()), *INPUTS)
    limit = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(forward(attached, *INPUTS), expected, atol=limit)
    answers = [
        glm_jax.generate(m, [[3, 4, 5]], max_new_tokens=4, stop_ids=[])
        for m in (attached, attach(floats, lora_adapter()))
    ]
    assert answers[0] == answers[1]


def test_several_add_up(tmp_path):
    first, second = lora_adapter(), lora_adapter(rank=3, alpha=2)
    one_by_one = attach(attach(MODEL, first, merge=False), second, merge=False)
    assert one_by_one.layers.attention.q_proj.lora.a.shape == (2, 5, 16)
    save_model(tmp_path / "m", MODEL, CONFIG)
    save_adapter(tmp_path / "a", first)
    loaded = glm_jax.load(tmp_path / "m", adapter=[tmp_path / "a", second])
    expected = forward(loaded, *INPUTS)
    limit = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(forward(one_by_one, *INPUTS), expected, atol=limit)


def test_a_new_one_changes_nothing_yet():
    model = add_lora(MODEL, PATHS, jax.random.key(1), rank=2, scale=2.0)
    assert np.array_equal(forward(model, *INPUTS), forward(MODEL, *INPUTS))
    shapes = {name: x.shape for name, x in flat_paths(lora_params(model)).items()}
    assert len(shapes) == 14
    assert shapes["layers.attention.o_proj.lora_a"] == (2, 2, 4, 4)
    assert shapes["layers.attention.k_proj.lora_b"] == (2, CONFIG.num_kv_heads, 4, 2)
    a = np.asarray(model.layers.mlp.down_proj.lora.a)  # 24 columns
    assert 0.9 * 24**-0.5 < np.abs(a).max() <= 24**-0.5


def test_dropout_needs_a_key_and_differs_between_matrices():
    model = attach(MODEL, lora_adapter(), merge=False)
    for path in ("q_proj", "o_proj"):
        getattr(model.layers.attention, path).lora.rate = 0.5
    still = attach(MODEL, lora_adapter(), merge=False)
    assert np.array_equal(forward(model, *INPUTS), forward(still, *INPUTS))
    dropped = forward(model, *INPUTS, dropout_key=jax.random.key(0))
    assert np.abs(dropped - forward(model, *INPUTS)).max() > 0.01
    salts = {getattr(model.layers.attention, path).lora.salt for path in ("q_proj", "o_proj")}
    assert len(salts) == 2


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (["q_proj", "v_proj"], [PATHS[0], PATHS[2]]),
        (["all-linear"], PATHS),
        (["query_key_value", "dense"], PATHS[:4]),
        ([r".*\.mlp\..*"], PATHS[4:]),
    ],
)
def test_targets_by_name(wanted, chosen):
    assert list(lora_targets(MODEL, wanted)) == chosen


def test_a_target_that_is_none():
    with pytest.raises(UserError, match=r"target 'w1' is none of all-linear, q_proj, k_proj"):
        lora_targets(MODEL, ["w1"])
    with pytest.raises(UserError, match="no regular expression"):
        lora_targets(MODEL, ["("])


def test_a_model_with_lora_is_neither_saved_nor_quantised(tmp_path):
    model = attach(MODEL, lora_adapter(), merge=False)
    with pytest.raises(UserError, match="merge its LoRA first"):
        save_model(tmp_path / "m", model, CONFIG)
    with pytest.raises(UserError, match="has LoRA beside its weights"):
        glm_jax.quantize(model, "int8")


def test_layers_in_several_stacks():
    cut = nn.cut_layers(MODEL, [1])
    assert cut.stacks == (1, 1) and MODEL.stacks == ()
    assert np.array_equal(forward(cut, *INPUTS), forward(MODEL, *INPUTS))
    np.testing.assert_array_equal(
        jax.jit(nn.GLM.trace)(cut, *INPUTS).layers, jax.jit(nn.GLM.trace)(MODEL, *INPUTS).layers
    )
    back = nn.joined_layers(cut)
    assert jax.tree.structure(back) == jax.tree.structure(MODEL)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, MODEL))
