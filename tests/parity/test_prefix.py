"""P-Tuning v2: the prefix itself, what it changes, and its gradients."""

import jax
import numpy as np
import pytest

import glm_jax
from glm_jax.ckpts.trees import flat_paths, to_plain
from glm_jax.nn import lm_loss
from glm_jax.text.layout import lay_out
from tests.parity.golden import Reader, check_rows, lay_out_real, load_case, train_batch

FAMILIES = ("chatglm-6b", "chatglm2-6b", "chatglm3-6b")
RELEASED = {
    "embedding": "embedding.weight",
    "projection_in.weight": "trans.0.weight",
    "projection_in.bias": "trans.0.bias",
    "projection_out.weight": "trans.2.weight",
    "projection_out.bias": "trans.2.bias",
}


@pytest.fixture(
    params=[f"{f}/ptuning_v2_{p}" for f in FAMILIES for p in ("noproj", "proj")], scope="module"
)
def case(request):
    family = request.param.split("/")[0]
    return load_case(request.param, base=f"{family}/base")


def test_keys_and_values(case):
    theirs = case.get("prefix/past_key_values")[:, :, :, 0]  # the same in every row
    for ours, kind in zip(case.model.prefix(), (0, 1), strict=True):
        case.close(ours, "prefix", theirs[:, kind], kind="prefix", tolerance=1e-6)


def test_forward(case):
    check_rows(case, "forward", [lay_out(x, case.config) for x in case.get("forward/input_ids")])


def test_padded_rows_and_score(case):
    rows, real = lay_out_real(case, "padded")
    check_rows(case, "padded", rows, real)
    scores = glm_jax.score(case.model, [row.tokens.tolist() for row in rows])
    for ours, theirs, keep in zip(scores, case.get("padded/logits"), real, strict=True):
        case.close(ours, "padded/logits", theirs[keep])


def test_greedy_generation_behind_the_prefix(case):
    rows = [lay_out(ids, case.config) for ids in case.get("generate/input_ids")]
    tokens, logits = Reader(case, rows).greedy(case.get("generate/tokens").shape[1])
    assert tokens.tolist() == case.get("generate/tokens").tolist()
    case.close(logits, "generate/step_logits")


@jax.jit
def loss_and_grads(model, batch):
    def loss(prefix):
        trained = jax.tree.map(lambda x: x, model)
        trained.prefix = prefix
        (total, weight), _ = lm_loss(trained, batch)
        return total / weight

    return jax.value_and_grad(loss)(model.prefix)


def test_loss_and_gradients_of_the_prefix(case):
    rows = [lay_out(ids, case.config) for ids in case.get("train/input_ids")]
    check_rows(case, "train", rows)
    batch = train_batch(case, rows, list(case.get("train/labels")))
    loss, grads = loss_and_grads(case.model, batch)
    case.close(loss, "train/loss", kind="loss")
    norms = [name for name in case.cases if name.startswith("train/grad_norm/")]
    ours = {
        f"transformer.prefix_encoder.{RELEASED[path]}": np.asarray(grad)
        for path, grad in flat_paths(to_plain(grads)).items()
    }
    assert {name.split("/")[-1] for name in norms} == set(ours)
    for name in norms:
        mine = np.linalg.norm(ours[name.split("/")[-1]])
        np.testing.assert_allclose(mine, case.get(name), rtol=1e-3, atol=2e-5, err_msg=name)
    whole = "train/grad/transformer.prefix_encoder.embedding.weight"
    case.close(ours[whole.split("/")[-1]], whole, kind="gradient", tolerance=2e-5)
