import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.ckpts import load_config, load_generation, load_model, save_model
from glm_jax.ckpts.trees import to_plain
from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.sharding import MeshConfig, make_mesh
from tests.train.small import CONFIG

MODEL = GLM(CONFIG, jax.random.key(0))


@pytest.fixture
def saved(tmp_path):
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.model").write_bytes(b"pieces")
    generation = {"stop_ids": [6], "temperature": 0.9}
    save_model(tmp_path / "m", MODEL, CONFIG, tokenizer_dir=tmp_path / "tok", generation=generation)
    return tmp_path / "m"


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), to_plain(a), to_plain(b)))


def biggest(directory: pathlib.Path) -> pathlib.Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_what_lies_there(saved):
    names = {p.name for p in saved.iterdir()}
    assert names == {"config.json", "params", "tokenizer", "generation.json", "checksums.json"}
    assert (saved / "tokenizer" / "tokenizer.model").read_bytes() == b"pieces"
    assert load_config(saved) == CONFIG
    assert load_generation(saved) == {"stop_ids": [6], "temperature": 0.9}
    assert [p.name for p in saved.parent.iterdir() if p.name.startswith(".")] == []


def test_comes_back_as_it_was(saved):
    model = load_model(saved)
    assert same(model, MODEL)
    assert jax.tree.structure(model) == jax.tree.structure(MODEL)


def test_straight_into_the_shards_of_a_mesh(saved):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    model = load_model(saved, mesh=mesh)
    weight = model.layers.mlp.up_proj.weight[...]
    assert weight.addressable_shards[0].data.size * 8 == weight.size
    assert same(model, MODEL)


def test_in_another_type(saved):
    model = load_model(saved, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(model.embedding[...], MODEL.embedding[...].astype(jnp.bfloat16))


def test_overwrites_only_when_told(saved):
    with pytest.raises(UserError, match="exists already"):
        save_model(saved, MODEL, CONFIG)
    save_model(saved, jax.tree.map(jnp.zeros_like, MODEL), CONFIG, overwrite=True)
    assert not load_model(saved).embedding[...].any()


def test_weights_may_be_a_nested_dict_of_numpy_arrays(tmp_path):
    save_model(tmp_path / "m", jax.tree.map(np.asarray, to_plain(MODEL)), CONFIG)
    assert same(load_model(tmp_path / "m"), MODEL)


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_directory(tmp_path):
    with pytest.raises(UserError) as error:
        load_model(tmp_path / "nowhere")
    assert one_line(error) == f"{tmp_path / 'nowhere'} is no model directory: it has no config.json"


def test_no_params(saved):
    (saved / "params").rename(saved / "elsewhere")
    with pytest.raises(UserError) as error:
        load_model(saved)
    assert "has no params/" in one_line(error)


def test_config_of_another_model(saved):
    (saved / "config.json").write_text(CONFIG.replace(vocab_size=256).to_json())
    with pytest.raises(UserError) as error:
        load_model(saved)
    assert "embedding is (128, 64), not (256, 64)" in one_line(error)


def test_config_that_is_none(saved):
    (saved / "config.json").write_text('{"vocab_size": 3')
    with pytest.raises(UserError) as error:
        load_model(saved)
    assert "config.json is not a GLMConfig" in one_line(error)


def test_truncated_weights(saved):
    path = biggest(saved / "params")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError) as error:
        load_model(saved)
    assert "params is damaged" in one_line(error) or "cannot be read" in one_line(error)


def test_changed_weights(saved):
    sums = json.loads((saved / "checksums.json").read_text())
    sums["embedding"] ^= 4
    (saved / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(UserError) as error:
        load_model(saved)
    assert "the numbers of embedding changed" in one_line(error)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        save_model(tmp_path / "file" / "m", MODEL, CONFIG)
    assert "could not be written" in one_line(error)
