"""Greedy generation of every family through ``glm_jax.generate`` gives the released tokens."""

import numpy as np
import pytest

import glm_jax
from glm_jax.nn import Compute
from glm_jax.text.decoding_loop import prefill
from glm_jax.text.generate import Remembered, generate, stream
from glm_jax.text.layout import lay_out
from tests.parity.golden import load_case
from tests.parity.test_glm import generation_prompts

CAUSAL = ["chatglm2-6b/base", "chatglm3-6b/base", "chatglm3-6b/32k", "chatglm3-6b/128k",
          "glm-4-9b/base", "glm-4-9b/chat", "glm-4-9b/chat-1m"]  # fmt: skip
PREFIXES = ["chatglm-6b/ptuning_v2_proj", "chatglm2-6b/ptuning_v2_noproj"]


def real(case, group):
    """Prompts of a left-padded batch without their padding."""
    ids, mask = case.get(f"{group}/input_ids"), case.get(f"{group}/attention_mask")
    kept = mask.astype(bool) if mask.ndim == 2 else ~np.diagonal(mask[:, 0], axis1=1, axis2=2)
    return [row[keep].tolist() for row, keep in zip(ids, kept, strict=True)]


def check(case, group, prompts):
    wanted = case.get(f"{group}/tokens").tolist()
    assert generate(case.model, prompts, max_new_tokens=len(wanted[0]), stop_ids=()) == wanted


@pytest.mark.parametrize("name", CAUSAL)
def test_causal(name):
    case = load_case(name)
    check(case, "generate", case.get("generate/input_ids").tolist())
    if "generate_padded/tokens" in case.cases:
        check(case, "generate_padded", real(case, "padded"))
    if "generate_eos/tokens" in case.cases:
        wanted = case.get("generate_eos/tokens")[0].tolist()
        prompt = case.get("generate/input_ids").tolist()
        [found] = generate(case.model, prompt, max_new_tokens=14, stop_ids=[wanted[-1]])
        assert found == wanted[:-1]


def test_chatglm():
    case = load_case("chatglm-6b/base")
    for group in ("generate", "generate_mask"):
        check(case, group, case.get(f"{group}/input_ids").tolist())
    check(case, "generate_padded", real(case, "generate_padded"))


@pytest.mark.parametrize("group", ["gmask", "mask"])
def test_chatglm_version_1_0(group):
    case = load_case("chatglm-6b/v1.0")
    wanted = case.get(f"{group}/generate/tokens").tolist()
    prompts = case.get(f"{group}/input_ids").tolist()
    assert generate(case.model, prompts, max_new_tokens=len(wanted[0]), stop_ids=()) == wanted


def test_glm():
    case = load_case("glm-10b/base")
    prompts, _ = generation_prompts(case)
    check(case, "generate", [ids.tolist() for ids in prompts])


@pytest.mark.parametrize("name", PREFIXES)
def test_with_a_prefix(name):
    case = load_case(name, base=f"{name.split('/')[0]}/base")
    check(case, "generate", case.get("generate/input_ids").tolist())


@pytest.mark.parametrize(
    "name", ["chatglm-6b-int8", "chatglm-6b-int4", "chatglm2-6b-int8", "chatglm2-6b-int4"]
)
def test_integers(name):
    case = load_case(name, keep_quantized=True)
    check(case, "generate", case.get("generate/input_ids").tolist())


@pytest.mark.parametrize("name", ["glm-4-9b/base", "chatglm-6b/base"])
def test_a_row_gives_what_it_gives_alone(name):
    """Also in pieces, and at whatever length its neighbours have."""
    case = load_case(name)
    prompts = real(case, "padded")
    together = generate(case.model, prompts, max_new_tokens=10, stop_ids=())
    alone = [generate(case.model, [p], max_new_tokens=10, stop_ids=())[0] for p in prompts]
    assert together == alone
    pieces = list(stream(case.model, prompts[0], every=3, max_new_tokens=10, stop_ids=()))
    assert [len(piece) for piece in pieces] == [3, 3, 3, 1]
    assert [i for piece in pieces for i in piece] == alone[0]
    sampled = {"temperature": 0.9, "top_p": 0.9, "top_k": 50, "max_new_tokens": 10, "stop_ids": ()}
    seeds = [11, 12, 13][: len(prompts)]
    together = generate(case.model, prompts, seed=seeds, **sampled)
    alone = [
        generate(case.model, [p], seed=s, **sampled)[0] for p, s in zip(prompts, seeds, strict=True)
    ]
    assert together == alone
    assert generate(case.model, prompts[:1], seed=99, **sampled) != together[:1]


def test_top_level():
    assert glm_jax.generate is generate


@pytest.mark.parametrize("name", ["glm-4-9b/base", "chatglm2-6b/ptuning_v2_noproj"])
def test_a_conversation_is_not_read_again(name):
    """Every turn gives what it gives from the start, and reads only what is new."""
    base = f"{name.split('/')[0]}/base" if "ptuning" in name else None
    case = load_case(name, base=base)
    answer = lambda ids, memory=None: [
        i
        for piece in stream(case.model, ids, max_new_tokens=9, stop_ids=(), remember=memory)
        for i in piece
    ]
    memory, ids = Remembered(), [1, 2, 3, 4]
    for turn in range(4):
        ids += answer(ids, memory)
        if turn:
            assert memory.reused > 9 * turn
        ids += [5 + turn] * (2 + 7 * turn)
        assert answer(ids) == answer(ids, memory)
    changed = [*ids[:6], 9, 9]
    assert answer(changed) == answer(changed, memory)
    assert memory.reused == 6


def test_both_directions_are_read_again():
    case = load_case("chatglm-6b/base")
    memory = Remembered()
    prompt = case.get("generate/input_ids")[0].tolist()
    for _ in range(2):
        found = list(stream(case.model, prompt, max_new_tokens=5, stop_ids=(), remember=memory))
        assert [i for piece in found for i in piece] == case.get("generate/tokens")[0, :5].tolist()
        assert memory.reused == 0


def test_reading_in_pieces():
    case = load_case("chatglm3-6b/base")
    rng = np.random.default_rng(0)
    rows = [lay_out(rng.integers(0, case.config.vocab_size, n), case.config) for n in (45, 7, 33)]
    compute = Compute()
    whole = prefill(case.model, rows, 4, compute)
    pieces = prefill(case.model, rows, 4, compute, chunk=16)
    np.testing.assert_allclose(pieces.logits, whole.logits, atol=2e-4)
    np.testing.assert_array_equal(pieces.next.slot, whole.next.slot)
