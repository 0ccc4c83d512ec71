"""Every released model as data: sizes, counts, config.json."""

import json
import pathlib

import jax
import pytest

from glm_jax import nn
from glm_jax.config import GLMConfig, flops_per_token, num_params, preset
from glm_jax.presets import PRESETS

# Parameters of the released state dicts, buffers left out (spec, section H), heads counted once.
PUBLISHED = {
    "chatglm-6b": 6_173_286_400,
    "chatglm2-6b": 6_243_584_000,
    "chatglm3-6b": 6_243_584_000,
    "glm-4-9b": 9_399_951_360,
    "glm-10b": 9_880_682_496,
    # 4 kv heads for 2: 40 layers * 2 (k and v) * 2 heads * 128 * (4096 + 1 bias) more
    "glm-4-9b-chat-1m": 9_399_951_360 + 40 * 2 * 2 * 128 * 4097,
}


def test_published_counts():
    assert {name: num_params(preset(name)) for name in PUBLISHED} == PUBLISHED


def test_chatglm_files_hold_the_tied_head_twice():
    """368 tensors, 6.7079 G parameters: 28 inv_freq buffers of 32, and lm_head beside its twin."""
    config = preset("chatglm-6b")
    in_files = num_params(config) + config.vocab_size * config.embed_dim + 28 * 32
    assert in_files == 6_707_929_984


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_abstractly_with_its_exact_count(name):
    config = preset(name)
    model = jax.eval_shape(lambda key: nn.GLM(config, key), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == num_params(config)


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(KeyError, match=r"no preset 'glm-5'; there are .*chatglm2-6b"):
        preset("glm-5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0; it must be at least 1"),
        ({"num_kv_heads": 5}, "num_heads 32 is not a multiple of num_kv_heads 5"),
        ({"norm": "batchnorm"}, "norm is 'batchnorm'; choose one of layernorm, rmsnorm"),
        ({"head_dim": 6}, "must be an even number"),
        ({"num_labels": -1}, "num_labels is -1; it must not be negative"),
        ({"quantization": "int3"}, "quantization is 'int3'; choose one of none, int8, int4"),
        ({"quantization": "int4", "mlp_dim": 107}, "must be even, they are 4096, 128, 107"),
    ],
)
def test_nonsense_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        preset("chatglm2-6b").replace(**change)


@pytest.mark.parametrize("name", PRESETS)
def test_json_and_hf_round_trips(name):
    config = preset(name)
    assert GLMConfig.from_json(config.to_json()) == config
    hf = json.loads(json.dumps(config.to_hf()))
    back = GLMConfig.from_hf(hf)
    # RoBERTa's vocabulary is of GPT-2's size, and config.json names no ids
    assert back.replace(special=config.special, stop_ids=config.stop_ids) == config


def test_transformers_layout_round_trip():
    config = preset("glm-4-9b-chat")
    hf = config.to_hf("transformers")
    assert (hf["rope_theta"], hf["num_key_value_heads"], hf["rms_norm_eps"]) == (5e6, 2, 1.5625e-07)
    assert GLMConfig.from_hf(hf) == config
    with pytest.raises(ValueError, match="GLM-4's network only"):
        preset("glm-10b").to_hf("transformers")


GOLDEN = sorted(pathlib.Path(__file__).parents[2].glob("shared/golden/*/**/config.json"))
GOLDEN = GOLDEN or sorted(pathlib.Path(__file__).parent.glob("golden/*/**/config.json"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: f"{p.parent.parent.name}-{p.parent.name}")
def test_released_config_files_survive(path):
    hf = json.loads(path.read_text())
    back = GLMConfig.from_hf(hf).to_hf()
    assert {key: back.get(key) for key in hf} == hf


def test_what_a_config_file_lacks_is_named():
    with pytest.raises(ValueError, match="lacks 'hidden_size'"):
        GLMConfig.from_hf({"padded_vocab_size": 8, "num_attention_heads": 2, "num_layers": 1})
    with pytest.raises(ValueError, match="none of GLM's layouts"):
        GLMConfig.from_hf({"model_type": "llama"})


def test_flops_are_six_per_weight_plus_attention():
    config = preset("glm-4-9b")
    lookup = config.vocab_size * config.embed_dim  # a table look-up is no matrix product
    small = 40 * (2 * 4096 + 4608) + 4096  # norms and biases
    weights = num_params(config) - lookup - small
    assert flops_per_token(config, 1) == 6 * weights + 12 * 40 * 4096
    assert flops_per_token(config, 8192) - flops_per_token(config, 1) == 12 * 40 * 4096 * 8191
    assert flops_per_token(config, 1) == 3 * flops_per_token(config, 1, backward=False)
