"""P-Tuning v2 prefixes and LoRA there and back, and what merging a LoRA must give."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import glm_jax
from convert.adapters import from_torch
from convert.checkpoint import open_released
from convert.from_torch import convert
from convert.pickle_writer import write_pickled
from convert.tensors import read_all
from convert.to_torch import export
from convert.verify import compare
from glm_jax.ckpts import load_model
from glm_jax.errors import UserError
from glm_jax.peft import attach, load_adapter
from tests.convert import files
from tests.goldens import golden

RANK = 3
FUSED = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


@pytest.mark.parametrize("form", ["proj", "noproj"])
@pytest.mark.parametrize("family", ["chatglm-6b", "chatglm2-6b", "chatglm3-6b"])
def test_released_prefixes_come_back(family, form, tmp_path):
    src = golden(f"{family}/ptuning_v2_{form}")
    convert(src, tmp_path / "ours")
    adapter = load_adapter(tmp_path / "ours")
    assert adapter.settings["projection"] == (form == "proj")
    export(tmp_path / "ours", tmp_path / "back")
    files.assert_same_tensors(src, tmp_path / "back")
    was, now = (json.loads((p / "config.json").read_text()) for p in (src, tmp_path / "back"))
    assert was.items() <= now.items()


def prefix(folder, names, config=None):
    """A prefix of 5 tokens for chatglm2's small form: 2 layers of 2 heads of 4."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    width = 2 * 2 * 2 * 4
    shapes = {
        "embedding.weight": (5, width),
        "trans.0.weight": (16, width),
        "trans.0.bias": (16,),
        "trans.2.weight": (width, 16),
        "trans.2.bias": (width,),
    }
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    write_pickled(folder / "pytorch_model.bin", {names + name: x for name, x in tensors.items()})
    (folder / "config.json").write_text(json.dumps(config or {}))


@pytest.mark.parametrize("names", ["", "prefix_encoder.", "transformer.prefix_encoder."])
def test_keys_with_and_without_their_prefix(names, tmp_path):
    prefix(tmp_path / "src", names)
    convert(tmp_path / "src", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    files.assert_same_tensors(tmp_path / "src", tmp_path / "back")


def test_the_length_is_checked(tmp_path):
    prefix(tmp_path / "src", "", {"pre_seq_len": 6})
    with pytest.raises(UserError, match="pre_seq_len 6; the prefix has 5 tokens"):
        convert(tmp_path / "src", tmp_path / "ours")


def lora(folder, tensors, targets, rank=RANK, **settings):
    """A PEFT directory that changes these released matrices."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    out = {}
    for name, x in tensors.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.rsplit(".", 1)[-1] in targets and x.ndim == 2:
            a = rng.standard_normal((rank, x.shape[1]), np.float32)
            b = rng.standard_normal((x.shape[0], rank), np.float32)
            out[f"base_model.model.{module}.lora_A.weight"] = a
            out[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(out, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "target_modules": list(targets)}
    (folder / "adapter_config.json").write_text(json.dumps({**about, **settings}))
    return out


def merged(tensors, adapter, scale):
    """PEFT's own arithmetic: W + scale * B A."""
    out = dict(tensors)
    for name, b in adapter.items():
        if ".lora_B." in name:
            a = adapter[name.replace("lora_B", "lora_A")]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            out[f"{module}.weight"] = tensors[f"{module}.weight"] + scale * b @ a
    return out


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", files.FAMILIES)
def test_lora_of_fused_matrices(family, rslora, tmp_path):
    config, layout = files.small(family), files.layout_of(family)
    tensors = files.random_tensors(config, layout)
    files.write_config(tmp_path / "base", config, layout)
    files.write_safetensors(tmp_path / "base", tensors)
    adapter = lora(tmp_path / "lora", tensors, FUSED, use_rslora=rslora)
    assert len(adapter) == 2 * 4 * config.num_layers
    from_torch(tmp_path / "lora", tmp_path / "ours", base=tmp_path / "base")
    export(tmp_path / "ours", tmp_path / "back")
    files.assert_same_tensors(tmp_path / "lora", tmp_path / "back")

    scale = 6 / (RANK**0.5 if rslora else RANK)
    files.write_config(tmp_path / "merged", config, layout)
    files.write_safetensors(tmp_path / "merged", merged(tensors, adapter, scale))
    convert(tmp_path / "base", tmp_path / "base-ours")
    convert(tmp_path / "merged", tmp_path / "merged-ours")
    ours = attach(load_model(tmp_path / "base-ours"), load_adapter(tmp_path / "ours"))
    wanted = load_model(tmp_path / "merged-ours")
    for module in ("attention.q_proj", "attention.v_proj", "attention.o_proj", "mlp.down_proj"):
        part, name = module.split(".")
        found, want = (
            getattr(getattr(m.layers, part), name).weight[...] for m in (ours, wanted)
        )  # fmt: skip
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5, err_msg=module)


def test_parts_with_different_a_fit_into_a_larger_rank(tmp_path):
    """Transformers' q_proj, k_proj and v_proj trained apart, for the released fused matrix."""
    config = files.small("glm-4-9b-chat")
    tensors = files.random_tensors(config, "transformers")
    files.write_config(tmp_path / "hf", config, "transformers")
    files.write_safetensors(tmp_path / "hf", tensors)
    lora(tmp_path / "lora", tensors, ("q_proj", "v_proj", "down_proj"))
    from_torch(tmp_path / "lora", tmp_path / "ours", base=tmp_path / "hf")
    about = json.loads((tmp_path / "ours" / "adapter.json").read_text())
    about["settings"] |= {"layout": "chatglm2", "released": {}}
    (tmp_path / "ours" / "adapter.json").write_text(json.dumps(about))
    export(tmp_path / "ours", tmp_path / "fused")
    back = load_file(tmp_path / "fused" / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "fused" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (2 * RANK, 12)
    assert settings["target_modules"] == ["dense_4h_to_h", "query_key_value"]
    assert {x.shape[0] for name, x in back.items() if "lora_A" in name} == {2 * RANK}
    from_torch(tmp_path / "fused", tmp_path / "again", base=tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "base")
    one, other = (
        attach(load_model(tmp_path / "base"), load_adapter(tmp_path / name))
        for name in ("ours", "again")
    )
    for name in ("q_proj", "k_proj", "v_proj"):
        a, b = (getattr(m.layers.attention, name).weight[...] for m in (one, other))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


WRONG = {
    "peft_type": ("PREFIX_TUNING", "only LORA is known"),
    "use_dora": (True, "use_dora True"),
    "r": (0, "r 0"),
    "bias": ("all", "trains biases"),
}


@pytest.mark.parametrize("key", WRONG)
def test_unknown_kinds_of_adapters(key, tmp_path):
    config = files.small("chatglm2-6b")
    files.write_config(tmp_path / "base", config, "chatglm2")
    tensors = files.random_tensors(config, "chatglm2")
    lora(tmp_path / "lora", tensors, FUSED, **{key: WRONG[key][0]} if key != "r" else {})
    if key == "r":
        path = tmp_path / "lora" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "r": 0}))
    with pytest.raises(UserError, match=WRONG[key][1]):
        convert(tmp_path / "lora", tmp_path / "out", base=tmp_path / "base")


def test_an_adapter_that_does_not_fit(tmp_path):
    config = files.small("chatglm2-6b")
    files.write_config(tmp_path / "base", config, "chatglm2")
    files.write_config(tmp_path / "wider", config.replace(embed_dim=32), "chatglm2")
    tensors = files.random_tensors(config, "chatglm2")
    lora(tmp_path / "lora", tensors, FUSED)
    with pytest.raises(UserError, match=r"mis-shaped: transformer\.encoder\.layers\.0"):
        convert(tmp_path / "lora", tmp_path / "out", base=tmp_path / "wider")
    with pytest.raises(UserError, match="does not name the base model"):
        convert(tmp_path / "lora", tmp_path / "out")


def test_a_model_saved_together_with_its_prefix(tmp_path):
    """As Trainer saves it whole; ours are a model and an adapter beside it."""
    config = files.small("chatglm2-6b")
    tensors = files.random_tensors(config, "chatglm2")
    prefix(tmp_path / "prefix", "transformer.prefix_encoder.")
    whole = {name: read_all(x) for name, x in open_released(tmp_path / "prefix").tensors.items()}
    files.write_config(tmp_path / "src", config, "chatglm2")
    about = json.loads((tmp_path / "src" / "config.json").read_text())
    (tmp_path / "src" / "config.json").write_text(json.dumps({**about, "pre_seq_len": 5}))
    files.write_safetensors(tmp_path / "src", {**tensors, **whole})
    convert(tmp_path / "src", tmp_path / "ours")
    assert sum(row.differing for row in compare(tmp_path / "src", tmp_path / "ours")[1]) == 0
    model = glm_jax.load(tmp_path / "ours", adapter=tmp_path / "ours" / "prefix")
    assert model.prefix.length == 5
    export(tmp_path / "ours" / "prefix", tmp_path / "back")
    files.assert_same_tensors(tmp_path / "prefix", tmp_path / "back")
