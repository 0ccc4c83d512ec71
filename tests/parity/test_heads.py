"""Sequence classification of every family that was released with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.nn import GLM
from glm_jax.text.layout import LaidOut, lay_out, stack_rows
from tests.parity.golden import lay_out_real, load_case

CAUSAL = ("chatglm2-6b/seqcls", "chatglm3-6b/seqcls", "glm-4-9b/seqcls")


@pytest.fixture(params=CAUSAL, scope="module")
def case(request):
    return load_case(request.param)


@functools.partial(jax.jit)
def scores_and_loss(model, batch, labels):
    scores = GLM.classify(model, *batch)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1)
    return nll.mean(), scores


gradients = jax.jit(jax.grad(scores_and_loss, has_aux=True))


def test_the_last_real_token_is_read(case):
    rows = [lay_out(ids, case.config) for ids in case.get("forward/input_ids")]
    _, scores = scores_and_loss(case.model, stack_rows(rows, 16), np.zeros(2, np.int32))
    case.close(scores, "forward/logits")


def test_padded_rows_loss_and_gradients(case):
    rows, _ = lay_out_real(case, "padded")
    batch, labels = stack_rows(rows, 16), case.get("padded/labels").astype(np.int32)
    loss, scores = scores_and_loss(case.model, batch, labels)
    case.close(scores, "padded/logits")
    case.close(loss, "padded/loss", kind="loss")
    grads, _ = gradients(case.model, batch, labels)
    ours = case.released_names(grads)
    for kind in ("weight", "bias"):
        name = f"classifier_head.{kind}"
        case.close(ours[name], f"padded/grad/{name}", kind="gradient", tolerance=2e-5)


def test_glm_reads_its_first_token():
    case = load_case("glm-10b/seqcls")
    ids, mask = case.get("cls/input_ids"), case.get("cls/attention_mask")
    rows = [
        LaidOut(x[:n].astype(np.int32), at[:, :n], int(n), None)  # bidirectional: all Part A
        for x, n, at in zip(ids, mask.sum(-1), case.get("cls/position_ids"), strict=True)
    ]
    labels = case.get("cls/labels").astype(np.int32)
    loss, scores = scores_and_loss(case.model, stack_rows(rows, 8), labels)
    case.close(scores, "cls/logits")
    case.close(loss, "cls/loss", kind="loss")


def test_a_model_without_a_head_says_so():
    model = load_case("chatglm2-6b/base").model
    with pytest.raises(ValueError, match="no classification head"):
        model.classify(*stack_rows([lay_out([1, 2], model.config)]))
