"""Scores of many prompts are those of each prompt alone."""

import importlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glm_jax
from glm_jax.ckpts import save_model
from glm_jax.config import preset
from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.peft import Adapter, attach, load_adapter, save_adapter
from glm_jax.sharding import MeshConfig, make_mesh
from glm_jax.special import SpecialTokens
from glm_jax.text.layout import lay_out, stack_rows

# The function has the module's name.
score_file = importlib.import_module("glm_jax.text.score")
SIZES = {"vocab_size": 48, "num_layers": 2, "embed_dim": 16, "head_dim": 4, "max_seq_len": 64}
CHATGLM2 = preset("chatglm2-6b").replace(num_heads=4, mlp_dim=24, **SIZES)
CHATGLM = preset("chatglm-6b").replace(
    num_heads=4,
    num_kv_heads=4,
    mlp_dim=32,
    special=SpecialTokens(eos=41, mask=42, gmask=43, sop=44, eop=41),
    **SIZES,
)
MODELS = {c.name: GLM(c, jax.random.key(0)) for c in (CHATGLM2, CHATGLM)}
RNG = np.random.default_rng(0)
forward = jax.jit(GLM.__call__)


def prompts(config, lengths=(3, 20, 1, 17, 33)):
    texts = [RNG.integers(0, 40, n).tolist() for n in lengths]
    if config.prefix_lm:
        return [[43, *ids[: len(ids) // 2], 44, *ids[len(ids) // 2 :]] for ids in texts]
    return texts


def alone(model, ids):
    batch = stack_rows([lay_out(ids, model.config)], 40)
    return forward(model, *batch[:4])[0, : len(ids)]


@pytest.mark.parametrize("name", MODELS)
def test_each_row_gives_what_it_gives_alone(name):
    model = MODELS[name]
    given = prompts(model.config)
    results = glm_jax.score(model, given)
    for ids, logits in zip(given, results, strict=True):
        assert logits.shape == (len(ids), 48)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, alone(model, ids), atol=1e-5)


def test_windows_of_logits_and_small_batches_change_nothing(monkeypatch):
    model = MODELS["chatglm2-6b"]
    given = prompts(model.config)
    whole = glm_jax.score(model, given)
    monkeypatch.setattr(score_file, "_LOGITS_AT_ONCE", 48 * 5)
    for a, b in zip(whole, glm_jax.score(model, given, max_tokens=16), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_few_programs_for_many_lengths():
    before = score_file._hidden._cache_size()
    glm_jax.score(MODELS["chatglm2-6b"], prompts(CHATGLM2, (2, 5, 9, 14)))
    glm_jax.score(MODELS["chatglm2-6b"], prompts(CHATGLM2, (16, 3, 3)))
    assert score_file._hidden._cache_size() - before <= 1


def test_an_error_names_the_prompt():
    with pytest.raises(UserError, match="prompt 1: id 48 at place 2 is outside"):
        glm_jax.score(MODELS["chatglm2-6b"], [[1], [1, 2, 48]])
    with pytest.raises(UserError, match="prompt 0: there is no sop"):
        glm_jax.score(MODELS["chatglm-6b"], [[43, 1]])


def test_no_prompts_no_scores():
    assert glm_jax.score(MODELS["chatglm2-6b"], []) == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "m", MODELS["chatglm2-6b"], CHATGLM2)
    table = jax.random.normal(jax.random.key(1), (2, 2 * 2 * 2 * 4))
    adapter = Adapter("prefix", {"length": 2, "projection": False}, {"embedding": table})
    save_adapter(folder / "p", adapter)
    return folder


def test_load_and_score_on_a_mesh_in_bfloat16(saved):
    given = prompts(CHATGLM2)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    model = glm_jax.load(saved / "m", "bfloat16", mesh)
    assert model.embedding.dtype == jnp.bfloat16
    assert len(model.embedding[...].sharding.device_set) == 8
    for a, b in zip(
        glm_jax.score(model, given), glm_jax.score(MODELS["chatglm2-6b"], given), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-2)


def test_load_with_an_adapter_on_a_mesh(saved):
    given = prompts(CHATGLM2, (4, 7))
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    model = glm_jax.load(saved / "m", mesh=mesh, adapter=saved / "p")
    here = attach(MODELS["chatglm2-6b"], load_adapter(saved / "p"))
    for a, b, plain in zip(
        glm_jax.score(model, given),
        glm_jax.score(here, given),
        glm_jax.score(MODELS["chatglm2-6b"], given),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.abs(a - plain).max() > 1e-3


def test_importing_the_library_imports_neither_jax_nor_orbax():
    code = "import sys, glm_jax; print({'jax', 'orbax', 'flax'} & set(sys.modules), dir(glm_jax))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("set()")
    assert "load_tokenizer" in out.stdout
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = glm_jax.nothing
