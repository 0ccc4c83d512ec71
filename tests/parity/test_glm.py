"""GLM-10B through the converter, and ChatGLM-6B v1.0. More of GLM: tests/nn/test_golden_glm.py."""

import numpy as np
import pytest

import glm_jax
from glm_jax.text.layout import LaidOut, lay_out
from tests.parity.golden import Reader, check_rows, load_case


@pytest.fixture(params=["glm-10b/base", "glm-10b/attention_scale8"], scope="module")
def glm(request):
    return load_case(request.param)


def test_without_a_mask_glm_is_causal(glm):
    ids = glm.get("forward_default/input_ids").astype(np.int32)
    places = np.stack([np.arange(ids.shape[1]), np.zeros(ids.shape[1])]).astype(np.int32)
    check_rows(glm, "forward_default", [LaidOut(row, places, 0, None) for row in ids])


def generation_prompts(glm):
    """Contexts without the padding that the release puts between them and sop."""
    ids, mask = glm.get("generate/input_ids"), glm.get("generate/generation_attention_mask")
    width = ids.shape[1]
    kept = [np.flatnonzero(np.diag(m[0, :width, :width])) for m in mask]
    return [row[keep] for row, keep in zip(ids, kept, strict=True)], kept


def test_prompts_of_glm_are_laid_out_scored_and_continued(glm):
    glm.need("generate")
    prompts, kept = generation_prompts(glm)
    rows = [lay_out(ids, glm.config) for ids in prompts]
    places = glm.get("generate/position_ids")
    scores = glm_jax.score(glm.model, [ids.tolist() for ids in prompts])
    for i, row in enumerate(rows):
        assert np.array_equal(row.positions, places[i][:, kept[i]])
        glm.close(scores[i], "score", glm.get("generate/prefill/logits")[i][kept[i]])
    tokens, logits = Reader(glm, rows).greedy(glm.get("generate/tokens").shape[1])
    assert tokens.tolist() == glm.get("generate/tokens").tolist()
    glm.close(logits, "generate/step_logits")


@pytest.mark.parametrize("group", ["gmask", "mask"])
def test_version_1_0_of_chatglm(group):
    case = load_case("chatglm-6b/v1.0")
    rows = [lay_out(ids, case.config) for ids in case.get(f"{group}/input_ids")]
    assert np.array_equal(rows[0].positions, case.get(f"{group}/position_ids")[0])
    visible = ~case.get(f"{group}/attention_mask")[0, 0]
    ends = np.maximum(np.arange(1, len(visible) + 1), rows[0].sep)
    assert np.array_equal(visible, np.arange(len(visible)) < ends[:, None])
    check_rows(case, group, rows)
    next_place = case.get(f"{group}/generate/step1_position_ids")[0]
    assert np.array_equal(rows[0].following(1), next_place)
    tokens, logits = Reader(case, rows).greedy(case.get(f"{group}/generate/tokens").shape[1])
    assert tokens.tolist() == case.get(f"{group}/generate/tokens").tolist()
    case.close(logits, f"{group}/generate/step_logits")
    prompts = case.get(f"{group}/input_ids").tolist()
    case.close(
        glm_jax.score(case.model, prompts)[0], f"{group}/logits", case.get(f"{group}/logits")[0]
    )
