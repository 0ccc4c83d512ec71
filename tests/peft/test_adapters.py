"""Adapters: their directory, LoRA in the weights, a prefix before the keys."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax import nn
from glm_jax.ckpts import save_model
from glm_jax.ckpts.trees import to_plain
from glm_jax.config import preset
from glm_jax.errors import UserError
from glm_jax.nn.attention import Keys
from glm_jax.peft import Adapter, PrefixEncoder, attach, load_adapter, lora_scale, save_adapter
from glm_jax.sharding import MeshConfig, make_mesh, tree_shardings

CONFIG = preset("chatglm2-6b").replace(
    vocab_size=40, num_layers=2, embed_dim=16, num_heads=4, head_dim=4, mlp_dim=24, max_seq_len=32
)
MODEL = nn.GLM(CONFIG, jax.random.key(0))
LENGTH, PREFIX = 6, 3
TOKENS = np.arange(2 * LENGTH, dtype=np.int32).reshape(2, LENGTH)
POSITIONS = np.tile(np.stack([np.arange(LENGTH), np.zeros(LENGTH)]), (2, 1, 1)).astype(np.int32)
RANGES = nn.causal_ranges(2, LENGTH)
INPUTS = TOKENS, POSITIONS, *RANGES
forward = jax.jit(nn.GLM.__call__)
trace = jax.jit(nn.GLM.trace)
decode = jax.jit(nn.GLM.decode)


def prefix_adapter(projection=False):
    encoder = PrefixEncoder(CONFIG, PREFIX, jax.random.key(1), projection=projection)
    params = jax.tree.map(lambda x: x * 40, to_plain(encoder))  # enough to be seen
    return Adapter("prefix", {"length": PREFIX, "projection": projection}, params)


def lora_adapter(rank=2, **settings):
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    attention = {
        "q_proj": {"lora_a": make(2, rank, 16), "lora_b": make(2, 4, 4, rank)},
        "o_proj": {"lora_a": make(2, rank, 4, 4), "lora_b": make(2, 16, rank)},
    }
    known = {"rank": rank, "alpha": 8, "targets": ["q_proj", "o_proj"], "rslora": False}
    return Adapter("lora", {**known, **settings}, {"layers": {"attention": attention}})


@pytest.mark.parametrize("make", [prefix_adapter, lora_adapter])
def test_an_adapter_comes_back_as_it_was(make, tmp_path):
    adapter = make()
    save_adapter(tmp_path / "a", adapter)
    back = load_adapter(tmp_path / "a")
    assert (back.kind, back.settings) == (adapter.kind, adapter.settings)
    assert jax.tree.all(jax.tree.map(np.array_equal, back.params, dict(adapter.params)))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_directory_is_not_overwritten_unless_asked(tmp_path):
    save_adapter(tmp_path / "a", prefix_adapter())
    with pytest.raises(UserError, match="exists already"):
        save_adapter(tmp_path / "a", lora_adapter())
    save_adapter(tmp_path / "a", lora_adapter(), overwrite=True)
    assert load_adapter(tmp_path / "a").kind == "lora"


def test_what_is_no_adapter_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"is no adapter: it has no adapter\.json"):
        load_adapter(tmp_path)
    (tmp_path / "adapter.json").write_text(json.dumps({"kind": "ia3", "settings": {}}))
    with pytest.raises(UserError, match="kind is 'ia3'; choose one of prefix, lora"):
        load_adapter(tmp_path)


def test_lora_is_added_to_the_weights():
    adapter = lora_adapter(alpha=8, rank=2)
    merged = attach(MODEL, adapter)
    pair = adapter.params["layers"]["attention"]["o_proj"]
    product = np.einsum("LDr,LrNH->LDNH", pair["lora_b"], pair["lora_a"])
    before = MODEL.layers.attention.o_proj.weight[...]
    np.testing.assert_allclose(
        merged.layers.attention.o_proj.weight[...], before + 4 * product, atol=1e-5
    )
    assert np.array_equal(
        merged.layers.attention.k_proj.weight[...], MODEL.layers.attention.k_proj.weight[...]
    )
    assert not np.array_equal(before, merged.layers.attention.o_proj.weight[...])


def test_rank_stabilised_scale():
    assert lora_scale({"rank": 4, "alpha": 8}) == 2
    assert lora_scale({"rank": 4, "alpha": 8, "rslora": True}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_proj": {"lora_a": jnp.zeros((2, 2, 16))}}, "pairs of lora_a and lora_b"),
        (
            {"q_proj": {"lora_a": jnp.zeros((2, 2, 9)), "lora_b": jnp.zeros((2, 4, 4, 2))}},
            r"attention.q_proj.lora_a is \(2, 2, 9\); rank 2 here needs \(2, 2, 16\)",
        ),
        (
            {"qkv": {"lora_a": jnp.zeros((2, 2, 16)), "lora_b": jnp.zeros((2, 4, 2))}},
            "layers.attention.qkv, which is no matrix",
        ),
    ],
)
def test_lora_that_does_not_fit_is_refused(change, message):
    adapter = Adapter("lora", lora_adapter().settings, {"layers": {"attention": change}})
    with pytest.raises(UserError, match=message):
        attach(MODEL, adapter)


def test_lora_keeps_type_and_shards():
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), MODEL)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    model = jax.device_put(model, tree_shardings(model, mesh))
    merged = attach(model, lora_adapter()).layers.attention.o_proj.weight[...]
    before = model.layers.attention.o_proj.weight[...]
    assert (merged.dtype, merged.sharding) == (before.dtype, before.sharding)


@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_changes_every_row_and_not_the_positions(projection):
    adapter = prefix_adapter(projection)
    model = attach(MODEL, adapter)
    assert MODEL.prefix is None
    logits = forward(model, *INPUTS)
    assert np.abs(logits - forward(MODEL, *INPUTS)).max() > 1e-3
    np.testing.assert_allclose(logits, model.logits(trace(model, *INPUTS).final_norm), atol=1e-6)


def test_decoding_behind_a_prefix_equals_reading_at_once():
    model = attach(MODEL, prefix_adapter())
    whole = forward(model, *INPUTS)
    cache = model.new_cache(2, LENGTH)
    assert cache.layers.k.shape[3] == PREFIX + LENGTH
    assert cache.slots == LENGTH
    parts = []
    for at in (slice(0, 4), slice(4, 6)):
        ranges = (r[:, at] for r in RANGES)
        slots = jnp.full(2, at.start)
        hidden, cache = decode(model, TOKENS[:, at], POSITIONS[..., at], *ranges, cache, slots)
        parts.append(hidden)
    np.testing.assert_allclose(model.logits(jnp.concatenate(parts, 1)), whole, atol=1e-5)
    with pytest.raises(ValueError, match="the cache holds a prefix of 0"):
        model.decode(*INPUTS, nn.KVCache.zeros(CONFIG, 2, LENGTH), jnp.zeros(2, jnp.int32))


def test_a_prefix_is_the_same_as_cached_keys_that_are_visible_to_all():
    """Written as plain cache entries in front, with ranges that count them."""
    model = attach(MODEL, prefix_adapter())
    cache = nn.KVCache.zeros(CONFIG, 2, PREFIX + LENGTH).with_prefix(*model.prefix())
    plain = nn.KVCache(cache.layers)
    ends = RANGES[1] + PREFIX
    slots = jnp.full(2, PREFIX)
    hidden, _ = decode(MODEL, TOKENS, POSITIONS, RANGES[0], ends, plain, slots)
    np.testing.assert_allclose(MODEL.logits(hidden), forward(model, *INPUTS), atol=1e-5)


def test_packed_documents_do_not_see_each_other_through_a_prefix():
    keys = Keys(jnp.array([[0, 0, 2, 2]]), jnp.array([[1, 2, 3, 4]])).after(PREFIX)
    assert keys.start.tolist() == [[0, 0, 5, 5]]
    assert keys.end.tolist() == [[4, 5, 6, 7]]


def test_prefix_dropout_needs_a_key_and_rescales():
    encoder = PrefixEncoder(CONFIG, 50, jax.random.key(0))
    whole, dropped = encoder()[0], encoder(jax.random.key(1))[0]
    kept = np.asarray(dropped) != 0
    assert 0.85 < kept.mean() < 0.95
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.9, rtol=1e-6)


def test_released_widths_of_the_projection():
    chatglm = preset("chatglm-6b")
    shapes = lambda config: {
        k: v.shape
        for k, v in to_plain(
            jax.eval_shape(
                lambda key: PrefixEncoder(config, 128, key, projection=True), jax.random.key(0)
            )
        )["projection_in"].items()
    }
    assert shapes(chatglm)["weight"] == (4096, 4096)
    assert shapes(preset("chatglm3-6b"))["weight"] == (4096, 14336)


def test_a_prefix_that_does_not_fit_is_refused():
    adapter = prefix_adapter()
    wrong = Adapter("prefix", {"length": 5, "projection": False}, adapter.params)
    with pytest.raises(
        UserError, match=r"prefix of 5 tokens does not fit .*embedding is \(3, 32\)"
    ):
        attach(MODEL, wrong)
    with pytest.raises(UserError, match="has a prefix already"):
        attach(attach(MODEL, adapter), adapter)


def test_a_prefix_is_not_saved_as_part_of_a_model(tmp_path):
    with pytest.raises(UserError, match="save_adapter"):
        save_model(tmp_path / "m", attach(MODEL, prefix_adapter()), CONFIG)


def test_gradients_reach_the_prefix_alone_when_asked_for():
    model = attach(MODEL, prefix_adapter(True))

    def loss(prefix):
        held = jax.tree.map(lambda x: x, model)
        held.prefix = prefix
        return forward(held, *INPUTS).std()

    grads = jax.grad(loss)(model.prefix)
    assert np.abs(grads.embedding[...]).max() > 0
    assert grads.projection_out.weight.shape == (32, 16)
