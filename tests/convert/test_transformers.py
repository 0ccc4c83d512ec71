"""What ``to_torch`` writes, loaded by Transformers; and ``verify --logits``, which runs it too."""

import json

import numpy as np
import pytest

from convert import reference, verify
from convert.from_torch import convert
from convert.to_torch import export
from glm_jax.errors import UserError
from tests.convert import files
from tests.goldens import golden


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    return pytest.importorskip("transformers", reason="Transformers is not installed")


@pytest.mark.parametrize(
    "case", ["glm-4-9b/base", "glm-4-9b/chat", "glm-4-9b/chat-1m", "chatglm3-6b/32k"]
)
def test_released_logits_from_transformers(case, transformers, tmp_path):
    import torch
    from safetensors.numpy import load_file

    src = golden(case)
    cases = load_file(src / "cases.safetensors")
    convert(src, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "hf", layout="transformers", shard_size=50_000)
    model = transformers.GlmForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(cases["forward/input_ids"])).logits.numpy()
    np.testing.assert_allclose(logits, cases["forward/logits"], rtol=0, atol=2e-4)


def test_what_transformers_saves_comes_back(transformers, tmp_path):
    import torch

    config = transformers.GlmConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=True,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=[1, 2],
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GlmForCausalLM(config)
    model.save_pretrained(tmp_path / "src", max_shard_size="20KB")
    convert(tmp_path / "src", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    files.assert_same_tensors(tmp_path / "src", tmp_path / "back")
    again = transformers.GlmForCausalLM.from_pretrained(tmp_path / "back")
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens).logits, again(tokens).logits)
    assert verify.main(verify.Args(tmp_path / "src", tmp_path / "ours", logits=True)) == 0


@pytest.mark.parametrize("family", ["chatglm2-6b", "chatglm3-6b-128k", "glm-4-9b-chat"])
def test_logits_beside_the_reference(family, transformers, tmp_path):
    files.make_released(tmp_path / "src", family)
    convert(tmp_path / "src", tmp_path / "ours")
    plan, _ = verify.compare(tmp_path / "src", tmp_path / "ours")
    assert reference.logit_difference(tmp_path / "src", tmp_path / "ours", plan) < 2e-4


@pytest.mark.parametrize("family", ["glm-10b", "chatglm-6b"])
def test_where_no_reference_can_be_run(family, tmp_path):
    files.make_released(tmp_path / "src", family)
    convert(tmp_path / "src", tmp_path / "ours")
    with pytest.raises(UserError, match="Transformers has no network for"):
        verify.main(verify.Args(tmp_path / "src", tmp_path / "ours", logits=True))


def test_a_quantised_embedding_becomes_floats(tmp_path):
    """Released as chatglm-6b-int4-qe: config quantization_embeddings."""
    config = files.small("chatglm-6b")
    tensors = files.random_tensors(config, "chatglm")
    rng = np.random.default_rng(0)
    name = "transformer.word_embeddings.weight"
    q = rng.integers(-7, 8, tensors[name].shape).astype(np.int8)
    scale = rng.uniform(0.1, 1, len(q)).astype(np.float16)
    packed = (q[:, ::2] << 4) | (q[:, 1::2] & 15)
    tensors |= {name: packed, name + "_scale": scale}
    files.write_config(tmp_path / "src", config, "chatglm")
    about = json.loads((tmp_path / "src/config.json").read_text())
    about |= {"quantization_bit": 4, "quantization_embeddings": True}
    (tmp_path / "src/config.json").write_text(json.dumps(about))
    files.write_safetensors(tmp_path / "src", tensors)
    convert(tmp_path / "src", tmp_path / "ours")
    from glm_jax.ckpts import load_model

    found = load_model(tmp_path / "ours").embedding[...]
    np.testing.assert_array_equal(found, q * scale[:, None].astype(np.float32))
    export(tmp_path / "ours", tmp_path / "back")
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert (back["quantization_bit"], back["quantization_embeddings"]) == (0, False)
