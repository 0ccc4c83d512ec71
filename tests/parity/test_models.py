"""Forward, padding, cache, generation, loss and gradients of every released text model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glm_jax
from glm_jax.nn import GLM, lm_loss
from glm_jax.text.layout import LaidOut, lay_out
from tests.parity.angles import tables
from tests.parity.golden import (
    TOLERANCE,
    TOLERANCES,
    Reader,
    check_rows,
    lay_out_real,
    load_case,
    padded,
    train_batch,
)

NAMES = (
    "chatglm-6b/base",
    "chatglm2-6b/base",
    "chatglm3-6b/base",
    "chatglm3-6b/32k",
    "chatglm3-6b/128k",
    "glm-4-9b/base",
    "glm-4-9b/chat",
    "glm-4-9b/chat-1m",
)


@pytest.fixture(params=NAMES, scope="module")
def case(request):
    return load_case(request.param)


def rows_of(case, name):
    return [lay_out(ids, case.config) for ids in case.get(name)]


def test_forward(case):
    rows = rows_of(case, "forward/input_ids")
    theirs = case.get("forward/position_ids")
    for row, at in zip(rows, theirs, strict=True):
        assert np.array_equal(row.positions[: at.ndim], at.reshape(-1, len(row.tokens)))
    check_rows(case, "forward", rows)


def test_left_padded_rows_are_our_right_padded_ones(case):
    rows, real = lay_out_real(case, "padded")
    check_rows(case, "padded", rows, real)


def test_score(case):
    rows, real = lay_out_real(case, "padded")
    prompts = [row.tokens.tolist() for row in rows] + case.get("forward/input_ids").tolist()
    theirs = [x[r] for x, r in zip(case.get("padded/logits"), real, strict=True)]
    theirs += list(case.get("forward/logits"))
    for ours, wanted in zip(glm_jax.score(case.model, prompts), theirs, strict=True):
        case.close(ours, "score", wanted)


def reference_table(case):
    """``(positions [.., T], cos, sin [.., T, R])`` as the reference holds them."""
    if "far_positions/rope_cache" in case.cases:
        table = case.get("far_positions/rope_cache")
        return case.get("far_positions/position_ids"), table[..., 0], table[..., 1]
    half = case.get("far_positions/rope_cos").shape[-1] // 2
    cos, sin = (case.get(f"far_positions/rope_{f}")[None, :, :half] for f in ("cos", "sin"))
    return case.get("far_positions/rope_positions")[None], cos, sin


def table_errors(case):
    """How far the reference's tables are from ours, which are right to 1e-6 (test_rope.py)."""
    at, cos, sin = reference_table(case)
    positions = np.stack([at, at], axis=1).astype(np.int32)
    ours = tables(case.config, positions)
    return [np.abs(x - y).max() for x, y in zip(ours, (cos, sin), strict=True)]


def far_rows(case):
    theirs = case.get("far_positions/position_ids")
    for row, at in zip(rows_of(case, "forward/input_ids"), theirs, strict=True):
        at = at if at.ndim == 2 else np.stack([at, np.zeros_like(at)])
        yield row._replace(positions=at.astype(np.int32))


def test_positions_far_out(case):
    """At 131071 a reference's float32 angle is itself off by 2e-4, which its logits show."""
    case.need("far_positions")
    usual = TOLERANCES.get(case.family, TOLERANCE)
    check_rows(
        case,
        "far_positions",
        list(far_rows(case)),
        tolerance=usual + 4 * max(table_errors(case)),
    )


def test_positions_far_out_by_the_references_own_angles(case, monkeypatch):
    """Nothing but the angles' rounding is behind what the test before allows for."""
    case.need("far_positions")

    def float32_tables(positions, freqs):
        angles = positions.astype(jnp.float32)[..., None] * jnp.asarray(freqs, jnp.float32)
        return jnp.cos(angles), jnp.sin(angles)

    monkeypatch.setattr(glm_jax.nn.positions, "rope_tables", float32_tables)
    rows = list(far_rows(case))
    states = jax.jit(lambda *x: GLM.trace(*x))(case.model, *padded(rows)[:4])
    logits = case.model.logits(states.final_norm)
    for row, mine, theirs in zip(rows, logits, case.get("far_positions/logits"), strict=False):
        case.close(mine[: len(row.tokens)], "far_positions/logits", theirs)


def test_rotary_tables_of_the_reference(case):
    case.need("far_positions")
    # Frequency and product are each rounded to float32: 1.2e-7 of an angle of up to p radians.
    limit = 1e-6 + float(reference_table(case)[0].max()) * 1.2e-7
    assert max(table_errors(case)) < limit


def test_prefill_in_two_chunks(case):
    case.need("chunked")
    first, second = case.get("chunked/input_ids_1"), case.get("chunked/input_ids_2")
    reader = Reader(case, [])
    logits = reader.read([lay_out(ids, case.config) for ids in first])
    case.close(np.stack(logits), "chunked/logits_1")
    more = [
        LaidOut(ids.astype(np.int32), np.stack([at, 0 * at]), 0, None)
        for ids, at in zip(second, case.get("chunked/position_ids_2"), strict=True)
    ]
    case.close(np.stack(reader.read(more)), "chunked/logits_2")


@pytest.mark.parametrize("group", ["generate", "generate_mask", "generate_padded", "generate_eos"])
def test_greedy_generation_through_the_cache(case, group):
    case.need(group)
    if group == "generate_padded":
        rows, _ = lay_out_real(case, group if f"{group}/input_ids" in case.cases else "padded")
    else:
        prompt = (
            f"{group}/input_ids" if f"{group}/input_ids" in case.cases else "generate/input_ids"
        )
        rows = rows_of(case, prompt)
    check_greedy(case, group, rows)


def check_greedy(case, group, rows):
    theirs = case.get(f"{group}/tokens")
    tokens, logits = Reader(case, rows).greedy(theirs.shape[1])
    assert tokens.tolist() == theirs.tolist()
    case.close(logits, f"{group}/step_logits")


def mean_loss(model, batch):
    (total, weight), _ = lm_loss(model, batch)
    return total / weight


_loss_and_grad = jax.jit(jax.value_and_grad(mean_loss))


@functools.cache
def train_rows(case_name, group):
    case = load_case(case_name)
    if group == "train":  # padded on the right, and read as if it were text
        rows = rows_of(case, "train/input_ids")
        return rows, None, list(case.get("train/labels"))
    rows, real = lay_out_real(case, "padded")
    labels = [x[keep] for x, keep in zip(case.get("train_padded/labels"), real, strict=True)]
    return rows, real, labels


@pytest.mark.parametrize("group", ["train", "train_padded"])
def test_loss_and_gradients(case, group):
    case.need(group)
    rows, real, labels = train_rows(case.name, group)
    check_rows(
        case, group, rows, np.ones_like(case.get(f"{group}/labels"), bool) if real is None else real
    )
    loss, grads = _loss_and_grad(case.model, train_batch(case, rows, labels))
    case.close(loss, f"{group}/loss", kind="loss")
    ours = case.released_names(grads)
    norms = [name for name in case.cases if name.startswith(f"{group}/grad_norm/")]
    if group == "train":
        assert {name.split("/")[-1] for name in norms} == set(ours)
    for name in norms:
        mine = np.linalg.norm(ours[name.split("/")[-1]])
        np.testing.assert_allclose(mine, case.get(name), rtol=1e-3, atol=2e-5, err_msg=name)
    for name in case.cases:
        if name.startswith(f"{group}/grad/"):
            case.close(ours[name.split("/")[-1]], name, kind="gradient", tolerance=2e-5)
