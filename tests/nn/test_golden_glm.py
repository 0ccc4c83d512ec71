"""The released GLM code's own numbers, from tiny random checkpoints (tests/golden/glm-10b)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax import nn
from tests import released

TOLERANCE = 2e-4  # the references' own float32 noise is 1e-5

forward = jax.jit(nn.GLM.__call__)
trace = jax.jit(nn.GLM.trace)


@functools.cache
def golden(case):
    return released.load_glm(case)


@pytest.fixture(autouse=True)
def exact_matmuls():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(params=["base", "attention_scale8"])
def case(request):
    return golden(request.param)


def close(ours, theirs, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance)


def check_trace(case, group, tokens, positions, k_start, k_end, rows=slice(None)):
    ours = trace(case.model, tokens, positions, k_start, k_end)
    close(ours.embedding[rows], case.cases[f"{group}/hidden_embedding"][rows])
    for layer in range(case.config.num_layers):
        close(ours.layers[layer][rows], case.cases[f"{group}/hidden_layer_{layer}"][rows])
    close(ours.final_norm[rows], case.cases[f"{group}/hidden_final_norm"][rows])
    close(case.model.logits(ours.final_norm)[rows], case.cases[f"{group}/logits"][rows])


def test_default_forward_is_causal_with_plain_positions(case):
    tokens = case.cases["forward_default/input_ids"].astype(np.int32)
    batch, length = tokens.shape
    positions = np.zeros((batch, 2, length), np.int32)
    positions[:, 0] = np.arange(length)
    check_trace(case, "forward_default", tokens, positions, *nn.causal_ranges(batch, length))


def test_sep_is_the_length_of_part_a(case):
    tokens = case.cases["sep/input_ids"].astype(np.int32)
    sep = jnp.asarray(case.cases["sep/attention_mask"])
    ranges = nn.prefix_ranges(sep, tokens.shape[1])
    check_trace(case, "sep", tokens, case.cases["sep/position_ids"].astype(np.int32), *ranges)


@pytest.mark.parametrize("objective", ["bert", "sentence", "gpt"])
def test_pretraining_batches(case, objective):
    group = f"pretrain_{objective}"
    if f"{group}/text" not in case.cases:
        pytest.skip(f"this checkpoint has no {group} case")
    get = lambda name: case.cases[f"{group}/{name}"]
    sep = jnp.asarray(get("attention_mask"))
    k_start, k_end = nn.prefix_ranges(sep, get("text").shape[1])
    batch = make_batch(
        get("text"), get("target"), get("loss_mask"), get("position_id"), k_start, k_end
    )
    check_loss_and_gradients(case, group, batch)
    close(forward(case.model, *inputs(batch)), get("logits"))


def test_training_with_targets(case):
    """Contexts padded inside the row by the release; compacted here, the loss is the same."""
    get = lambda name: case.cases[f"train/{name}"]
    rows = [released.ranges_of_mask(m[0]) for m in get("attention_mask")]
    labels = get("labels")
    batch = compact(
        rows, get("input_ids"), np.maximum(labels, 0), labels != -100, get("position_ids")
    )
    check_loss_and_gradients(case, "train", batch)
    ours = forward(case.model, *inputs(batch))
    for row, (kept, _, _) in enumerate(rows):
        close(ours[row, : len(kept)], get("logits")[row][kept])


def test_greedy_generation_through_the_cache(case):
    get = lambda name: case.cases[f"generate/{name}"]
    ids, mask, positions = get("input_ids"), get("generation_attention_mask"), get("position_ids")
    steps = get("tokens").shape[1]
    width = ids.shape[1]
    rows = [released.ranges_of_mask(m[0, :width, :width]) for m in mask]
    zeros = np.zeros_like(ids)
    batch = compact(rows, ids, zeros, zeros, positions[:, :, :width])
    lengths = jnp.asarray([len(kept) for kept, _, _ in rows])
    cache = nn.KVCache.zeros(case.config, len(ids), width + steps)
    decode = jax.jit(nn.GLM.decode)
    hidden, cache = decode(case.model, *inputs(batch), cache, jnp.zeros_like(lengths))
    for row, (kept, _, _) in enumerate(rows):
        close(case.model.logits(hidden[row, : len(kept)]), get("prefill/logits")[row][kept])
    last = hidden[jnp.arange(len(ids)), lengths - 1][:, None]
    for step in range(steps):
        logits = case.model.logits(last)[:, 0]
        close(logits, get("step_logits")[:, step])
        token = logits.argmax(-1)
        assert np.array_equal(token, get("tokens")[:, step]), f"step {step}"
        if step == steps - 1:
            break
        at = jnp.asarray(positions[:, :, width + step][:, :, None], jnp.int32)
        k_end = (lengths + step + 1)[:, None]
        last, cache = decode(
            case.model, token[:, None], at, jnp.zeros_like(k_end), k_end, cache, lengths + step
        )


def test_multiple_choice_scores_each_choice_as_its_own_row():
    case = golden("multiple_choice")
    get = lambda name: case.cases[f"mc/{name}"].astype(np.int32)
    scores = np.zeros_like(case.cases["mc/logits"])
    for row, choice in np.ndindex(scores.shape):
        at = get("choice_indices")[row, choice]
        slots, answer = at[at >= 0], get("choice_ids")[row, choice][at >= 0]
        kept = np.flatnonzero(get("attention_mask")[row, 0, slots[-1]])
        mask = get("attention_mask")[row, 0][np.ix_(kept, kept)]
        _, start, end = released.ranges_of_mask(mask)
        tokens, positions = get("input_ids")[row, kept], get("position_ids")[row][:, kept]
        logits = case.model(tokens[None], positions[None], start[None], end[None])[0]
        log_probs = jax.nn.log_softmax(logits)
        scores[row, choice] = sum(
            log_probs[np.flatnonzero(kept == slot)[0], token]
            for slot, token in zip(slots, answer, strict=True)
        )
    close(scores, case.cases["mc/logits"])
    loss = -jax.nn.log_softmax(scores)[np.arange(len(scores)), get("labels")].mean()
    close(loss, case.cases["mc/loss"])


def test_sequence_classification():
    folder = "seqcls"
    weights = released.load_file(released.GOLDEN / "glm-10b" / folder / "model.safetensors")
    head_names = ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")
    case = load_without(folder, head_names)
    head = nn.ClassificationHead(case.config, 3, jax.random.key(0))
    for name in head_names:
        part, kind = name.split(".")
        setattr(getattr(head, part), kind, type(head.dense.weight)(jnp.asarray(weights[name])))
    get = lambda name: case.cases[f"cls/{name}"]
    lengths = jnp.asarray(get("attention_mask").sum(-1))
    length = get("input_ids").shape[1]
    k_end = jnp.broadcast_to(lengths[:, None], (len(lengths), length)).astype(jnp.int32)
    keys = nn.attention.Keys(jnp.zeros_like(k_end), k_end)
    hidden = case.model.hidden(get("input_ids"), get("position_ids").astype(np.int32), keys)
    close(hidden, get("hidden"))
    logits = head(hidden, lengths)
    close(logits, get("logits"))
    loss = -jax.nn.log_softmax(logits)[np.arange(len(lengths)), get("labels")].mean()
    close(loss, get("loss"))


def load_without(folder, names):
    config = released.GLMConfig.from_hf(
        released.json.loads((released.GOLDEN / "glm-10b" / folder / "config.json").read_text())
    )
    weights = released.load_file(released.GOLDEN / "glm-10b" / folder / "model.safetensors")
    body = {k.removeprefix("glm."): v for k, v in weights.items() if k not in names}
    model = jax.eval_shape(lambda key: nn.GLM(config, key), jax.random.key(0))
    cases = released.load_file(released.GOLDEN / "glm-10b" / folder / "cases.safetensors")
    return released.Golden(config, released.fill(model, config, body), body, cases)


def make_batch(tokens, targets, weights, positions, k_start, k_end):
    return {
        "tokens": np.asarray(tokens, np.int32),
        "targets": np.asarray(targets, np.int32),
        "loss_weights": np.asarray(weights, np.float32),
        "positions": np.asarray(positions, np.int32),
        "k_start": jnp.asarray(k_start),
        "k_end": jnp.asarray(k_end),
    }


def compact(rows, tokens, targets, weights, positions):
    """Moves the padding of each row to its right end."""
    shape = tokens.shape
    out = make_batch(
        *np.zeros((3, *shape)), np.zeros((len(tokens), 2, shape[1])), *np.zeros((2, *shape))
    )
    out = {k: np.array(v) for k, v in out.items()}
    out["k_start"], out["k_end"] = (np.zeros(shape, np.int32) for _ in range(2))
    for row, (kept, start, end) in enumerate(rows):
        for name, source in (("tokens", tokens), ("targets", targets), ("loss_weights", weights)):
            out[name][row, : len(kept)] = source[row][kept]
        out["positions"][row, :, : len(kept)] = positions[row][:, kept]
        out["k_start"][row, : len(kept)], out["k_end"][row, : len(kept)] = start, end
    return out


def inputs(batch):
    return batch["tokens"], batch["positions"], batch["k_start"], batch["k_end"]


def check_loss_and_gradients(case, group, batch):
    def mean_loss(model):
        (total, weight), _ = nn.lm_loss(model, batch)
        return total / weight

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(case.model)
    close(loss, case.cases[f"{group}/loss"])
    ours = released.to_released(grads, case.config)
    norms = {k: v for k, v in case.cases.items() if k.startswith(f"{group}/grad_norm/")}
    for name, theirs in norms.items():
        mine = np.linalg.norm(ours[name.split("/")[-1].removeprefix("glm.")])
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=2e-5, err_msg=name)
    for name, theirs in case.cases.items():
        if name.startswith(f"{group}/grad/"):
            close(ours[name.split("/")[-1].removeprefix("glm.")], theirs, 2e-5)
    if group == "train":
        assert len(norms) == len(case.weights)
