"""Pictures show what the code computes: masks, turns, sizes, and a model's own attention."""

import io

import jax
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from glm_jax import viz
from glm_jax.config import num_params, preset
from glm_jax.data import Packer, layout_spans
from glm_jax.nn import GLM, Compute
from glm_jax.nn.attention import Keys
from glm_jax.nn.positions import Rope
from glm_jax.text.layout import lay_out, stack_rows
from glm_jax.viz.ranges import kinds
from glm_jax.viz.style import PART_A, PART_B, PAST

SMALL = {
    "num_layers": 2, "embed_dim": 32, "num_heads": 4, "head_dim": 8, "mlp_dim": 64,
}  # fmt: skip
FAMILIES = {"glm-10b": 4, "chatglm-6b": 4, "chatglm3-6b": 2, "glm-4-9b": 2}
TEXTS = {
    "glm-10b": "[CLS] a [MASK] b [MASK] eos sop c d sop e",
    "chatglm-6b": "a b [gMASK] sop c d",
    "chatglm3-6b": "[gMASK] sop a b c",
    "glm-4-9b": "[gMASK] sop a b c",
}


def pixels(figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=60)
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(-1, 4)[:, :3] / 255


def share(figure, colour: str) -> float:
    return float((np.abs(pixels(figure) - to_rgb(colour)).max(axis=1) < 0.02).mean())


def test_a_sketch_is_what_the_prompt_code_lays_out():
    row = viz.sketch(preset("glm-10b"), TEXTS["glm-10b"])
    assert row.words[2] == "[MASK]"
    assert row.positions.tolist() == [
        [0, 1, 2, 3, 4, 5, 2, 2, 2, 4, 4],
        [0, 0, 0, 0, 0, 0, 1, 2, 3, 1, 2],
    ]
    assert kinds(row)[[0, 6, 7]].tolist() == [
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [2, 2, 2, 2, 2, 2, 3, 0, 0, 0, 0],
        [2, 2, 2, 2, 2, 2, 3, 3, 0, 0, 0],
    ]


def test_a_packed_row_shows_who_is_isolated():
    example = layout_spans(range(10, 16), [(1, 3)], [0], mask_id=1, sop_id=2, eop_id=3)
    packer = Packer(24)
    packer.add(example, 0)
    packer.add(example, 0)
    (row,) = packer.flush()
    sketch = viz.sketch_packed(row, [str(t) for t in row["tokens"]])
    half = len(example.tokens)
    assert len(sketch.words) == 2 * half
    assert not sketch.seen[half:, :half].any()
    assert not sketch.seen[:half, half:].any()
    assert sketch.seen[:half, :half].tolist() == sketch.seen[half:, half:].tolist()


def test_masks_have_the_colours_of_their_kind():
    figures = {name: viz.draw_ranges([viz.sketch(preset(name), TEXTS[name])]) for name in FAMILIES}
    for name in ("glm-10b", "chatglm-6b"):
        assert share(figures[name], PART_A) > 0.05
        assert share(figures[name], PART_B) > 0.01
    for name in ("chatglm3-6b", "glm-4-9b"):
        assert share(figures[name], PAST) > 0.1


def test_which_dimensions_turn_together():
    first, later = (preset(name).replace(head_dim=8) for name in ("chatglm-6b", "chatglm3-6b"))
    assert viz.partners(first).tolist() == [2, 3, 0, 1, 6, 7, 4, 5]
    assert viz.partners(later).tolist() == [1, 0, 3, 2, 4, 5, 6, 7]


def test_similarity_is_the_mean_cosine():
    away = np.array([0, 1, 7, 100])
    theta = 10_000.0 ** -(np.arange(0, 64, 2) / 64)
    half = np.cos(away[:, None] * theta).mean(axis=1) / 2 + 0.5  # the other half never turns
    np.testing.assert_allclose(viz.similarity(preset("chatglm3-6b"), away), half, atol=1e-5)
    both = viz.similarity(preset("chatglm-6b"), away, away)
    np.testing.assert_allclose(both, 2 * half - 1, atol=0.02)  # frequencies in float16
    assert viz.wavelengths(preset("glm-4-9b-chat"))[0] == pytest.approx(2 * np.pi)


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_add_up(name):
    config = preset(name)
    assert sum(viz.part_sizes(config).values()) == num_params(config)
    kept = config.num_layers * config.num_kv_heads * config.head_dim
    assert viz.cache_bytes(config, 10) == 10 * 2 * 2 * kept


def test_the_diagram_says_what_the_config_says():
    said = viz.describe(preset("chatglm-6b"))
    assert said["residual"] == "× 7.48"  # sqrt(2 * 28)
    assert said["layers"] == "28 layers"
    assert "2 for k, v" in viz.describe(preset("glm-4-9b"))["attention"]
    assert "| mlp | SwiGLU; 4,096 → 2 × 13,696 → 4,096 |" in viz.table({"a": preset("glm-4-9b")})


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.slow] * (x != "glm-4-9b")) for x in FAMILIES],
)
def test_attention_weights_are_those_of_the_network(name):
    sizes = {**SMALL, "num_kv_heads": FAMILIES[name], "init_std": 0.3}
    config = preset(name).replace(**sizes, max_seq_len=32)
    model = GLM(config, jax.random.key(0))
    special = config.special
    ids = {
        "glm-10b": [special.cls, 5, special.mask, 6, special.eos, special.sop, 7, 8],
        "chatglm-6b": [5, 6, special.gmask, special.sop, 7, 8],
    }.get(name, [special.gmask, special.sop, 5, 6, 7, 8])
    row = lay_out(ids, config)
    weights = viz.attention_weights(model, row)
    assert weights.shape == (2, 4, len(ids), len(ids))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)

    rows = stack_rows([row])
    assert not weights[:, :, ~viz.seen(rows.k_start[0], rows.k_end[0])].any()
    trace = model.trace(*rows[:4])
    last = jax.tree.map(lambda x: x[1], model.layers)
    normed = last.attention_norm(trace.layers[0])
    values = np.repeat(last.attention.v_proj(normed), 4 // FAMILIES[name], axis=2)
    mixed = np.einsum("NTS,BSNH->BTNH", weights[1], values)
    rope, keys = Rope.make(config, rows.positions), Keys(rows.k_start, rows.k_end)
    expected, _ = last.attention(normed, rope, keys, compute=Compute())
    np.testing.assert_allclose(last.attention.o_proj(mixed), expected, atol=1e-4)


def test_every_picture_can_be_drawn():
    first, later = preset("chatglm-6b"), preset("glm-4-9b")
    row = viz.sketch(first, TEXTS["chatglm-6b"])
    figures = [
        viz.draw_turns({"a": (first, row), "b": (later, viz.sketch(later, TEXTS["glm-4-9b"]))}),
        viz.draw_pairs({"a": first, "b": later}),
        viz.draw_reach({"a": first, "b": later}),
        viz.draw_two_distances(first, reach=64),
        viz.draw_tables(viz.sketch(preset("glm-10b"), TEXTS["glm-10b"])),
        viz.draw_blocks({name: preset(name) for name in FAMILIES}),
        viz.draw_sizes({name: preset(name) for name in FAMILIES}),
        viz.draw_weights(row, row.seen[None] / row.seen.sum(axis=1)[:, None], ["uniform"]),
    ]
    for figure in figures:
        assert pixels(figure).std() > 0.05
