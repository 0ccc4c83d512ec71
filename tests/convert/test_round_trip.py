"""There and back without losing a bit, for every family, format and type."""

import json

import numpy as np
import pytest

from convert.from_torch import convert
from convert.tensors import BFLOAT16
from convert.to_torch import export
from convert.verify import compare
from glm_jax.ckpts import load_config, load_generation, load_model
from glm_jax.errors import UserError
from tests.convert import files
from tests.goldens import golden

CASES = [
    "glm-10b/base", "glm-10b/attention_scale8", "glm-10b/seqcls", "chatglm-6b/base",
    "chatglm-6b/v1.0", "chatglm2-6b/base", "chatglm2-6b/seqcls", "chatglm3-6b/base",
    "chatglm3-6b/32k", "chatglm3-6b/128k", "chatglm3-6b/seqcls", "glm-4-9b/base", "glm-4-9b/chat",
    "glm-4-9b/chat-1m", "glm-4-9b/seqcls",
]  # fmt: skip
QUANTIZED = ["chatglm-6b-int8", "chatglm-6b-int4", "chatglm2-6b-int8", "chatglm2-6b-int4"]


@pytest.mark.parametrize("case", CASES)
def test_released_files_come_back_bit_for_bit(case, tmp_path):
    src = golden(case)
    convert(src, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back", shard_size=100_000)
    files.assert_same_tensors(src, tmp_path / "back")
    was, now = (json.loads((p / "config.json").read_text()) for p in (src, tmp_path / "back"))
    assert was.items() <= now.items()
    _, rows = compare(src, tmp_path / "ours")
    assert sum(row.differing for row in rows) == 0


@pytest.mark.parametrize("case", QUANTIZED)
def test_kept_integers_come_back_bit_for_bit(case, tmp_path):
    src = golden(case)
    convert(src, tmp_path / "ours", keep_quantized=True)
    assert load_config(tmp_path / "ours").quantization == case[-4:]
    export(tmp_path / "ours", tmp_path / "back")
    files.assert_same_tensors(src, tmp_path / "back")
    with pytest.raises(UserError, match="transformers layout holds no integer weights"):
        export(tmp_path / "ours", tmp_path / "hf", layout="transformers")


@pytest.mark.parametrize("family", files.FAMILIES)
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=["float16", "bfloat16"])
def test_half_types_are_kept(family, dtype, tmp_path):
    files.make_released(tmp_path / "src", family, dtype=dtype)
    convert(tmp_path / "src", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    files.assert_same_tensors(tmp_path / "src", tmp_path / "back")


def test_every_file_format_gives_the_same_model(tmp_path):
    config = files.small("chatglm3-6b-128k")
    tensors = files.random_tensors(config, "chatglm2")
    writers = {
        "one": lambda to: files.write_safetensors(to, tensors),
        "shards": lambda to: files.write_safetensors(to, tensors, shard_size=4000),
        "bin": lambda to: files.write_bins(to, tensors),
        "bins": lambda to: files.write_bins(to, tensors, count=3),
    }
    for name, write in writers.items():
        files.write_config(tmp_path / name, config, "chatglm2")
        write(tmp_path / name)
        files.assert_same_tensors(tmp_path / "one", tmp_path / name)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    convert(tmp_path / "bins", tmp_path / "ours")
    _, rows = compare(tmp_path / "shards", tmp_path / "ours")
    assert sum(row.differing for row in rows) == 0


@pytest.mark.parametrize("family", ["chatglm2-6b", "glm-4-9b-chat"])
def test_through_transformers_layout_and_back(family, tmp_path):
    files.make_released(tmp_path / "src", family)
    convert(tmp_path / "src", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "hf", layout="transformers", shard_size=5000)
    convert(tmp_path / "hf", tmp_path / "again")
    assert load_config(tmp_path / "again") == load_config(tmp_path / "ours").replace(
        special=load_config(tmp_path / "again").special
    )
    export(tmp_path / "again", tmp_path / "back", layout="original")
    files.assert_same_tensors(tmp_path / "src", drop_buffers(tmp_path / "back"))


def drop_buffers(folder):
    """The rotary frequencies that a release has and random_tensors does not."""
    from convert.checkpoint import open_released
    from convert.tensors import read_all

    kept = {
        name: read_all(x)
        for name, x in open_released(folder).tensors.items()
        if "inv_freq" not in name
    }
    (folder / "model.safetensors").unlink()
    files.write_safetensors(folder, kept)
    return folder


def test_thudm_prefix_is_kept(tmp_path):
    config = files.small("glm-10b")
    tensors = files.random_tensors(config, "glm")
    files.write_config(tmp_path / "src", config, "glm")
    files.write_safetensors(tmp_path / "src", {f"glm.{n}": x for n, x in tensors.items()})
    files.write_config(tmp_path / "bare", config, "glm")
    files.write_safetensors(tmp_path / "bare", tensors)
    for name in ("src", "bare"):
        convert(tmp_path / name, tmp_path / f"{name}-ours")
        export(tmp_path / f"{name}-ours", tmp_path / f"{name}-back")
        files.assert_same_tensors(tmp_path / name, tmp_path / f"{name}-back")
    _, rows = compare(tmp_path / "bare", tmp_path / "src-ours")
    assert sum(row.differing for row in rows) == 0


def test_without_multi_query_attention_heads_take_turns(tmp_path):
    """ChatGLM2's code divides [h0q h0k h0v h1q ..] then (architectures, section B)."""
    config = files.small("chatglm2-6b").replace(num_kv_heads=4)
    assert config.to_hf()["multi_query_attention"] is False
    files.write_config(tmp_path / "src", config, "chatglm2")
    tensors = files.random_tensors(config, "chatglm2")
    files.write_safetensors(tmp_path / "src", tensors)
    convert(tmp_path / "src", tmp_path / "ours")
    ours = load_model(tmp_path / "ours").layers.attention
    name = "transformer.encoder.layers.1.self_attention.query_key_value.weight"
    fused = tensors[name].reshape(4, 3, 4, 16)
    for j, proj in enumerate((ours.q_proj, ours.k_proj, ours.v_proj)):
        np.testing.assert_array_equal(proj.weight[...][1], fused[:, j])
    export(tmp_path / "ours", tmp_path / "back")
    files.assert_same_tensors(tmp_path / "src", drop_buffers(tmp_path / "back"))


def test_casting_and_its_limit(tmp_path):
    config = files.small("chatglm2-6b")
    tensors = files.random_tensors(config, "chatglm2")
    files.write_config(tmp_path / "src", config, "chatglm2")
    files.write_safetensors(tmp_path / "src", tensors)
    convert(tmp_path / "src", tmp_path / "half", dtype="bfloat16")
    name = "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"
    stored = load_model(tmp_path / "half").layers.mlp.down_proj.weight[...][0]
    np.testing.assert_array_equal(stored, tensors[name].astype(BFLOAT16))
    tensors[name][3, 3] = 1e6
    files.write_safetensors(tmp_path / "src", tensors)
    with pytest.raises(UserError, match=r"layers\.0\.mlp.*beyond float16's 65504"):
        convert(tmp_path / "src", tmp_path / "overflow", dtype="float16")
    assert not (tmp_path / "overflow").exists()


def test_tokenizer_files_and_generation_settings_travel(tmp_path):
    files.make_released(tmp_path / "src", "glm-4-9b-chat")
    (tmp_path / "src" / "tokenizer.model").write_bytes(b"ranks")
    (tmp_path / "src" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "src" / "modeling_chatglm.py").write_text("raise SystemExit")
    released = {"eos_token_id": [1, 2], "temperature": 0.3, "top_p": 0.9, "_from": "there"}
    (tmp_path / "src" / "generation_config.json").write_text(json.dumps(released))
    convert(tmp_path / "src", tmp_path / "ours")
    settings = load_generation(tmp_path / "ours")
    assert settings["family"] == "glm-4-9b"
    assert settings["stop_ids"] == [1, 2]
    assert settings["sampling"]["temperature"] == 0.3
    export(tmp_path / "ours", tmp_path / "back")
    names = {path.name for path in (tmp_path / "back").iterdir()}
    assert {"tokenizer.model", "tokenizer_config.json"} <= names
    assert "modeling_chatglm.py" not in names
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == released


def test_a_model_trained_here_exports(tmp_path):
    """Without a release to look at, names and buffers are those that the released code needs."""
    import jax

    from convert.checkpoint import open_released
    from glm_jax.ckpts import save_model
    from glm_jax.nn import GLM

    config = files.small("chatglm-6b")
    save_model(tmp_path / "m", GLM(config, jax.random.key(0)), config)
    export(tmp_path / "m", tmp_path / "out")
    names = set(open_released(tmp_path / "out").tensors)
    assert "transformer.layers.1.attention.rotary_emb.inv_freq" in names
    assert "lm_head.weight" in names
    convert(tmp_path / "out", tmp_path / "again")
    _, rows = compare(tmp_path / "out", tmp_path / "again")
    assert sum(row.differing for row in rows) == 0
