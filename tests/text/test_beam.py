"""Beam search beside an exhaustive search, and beside Transformers' where it is installed."""

import itertools

import jax
import numpy as np
import pytest

from glm_jax.config import GLMConfig
from glm_jax.nn import GLM
from glm_jax.text.generate import generate
from glm_jax.text.score import score

CONFIG = GLMConfig(
    vocab_size=12, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8,
    mlp_dim=24, max_seq_len=64, init_std=0.6, stop_ids=(0,),
)  # fmt: skip
MODEL = GLM(CONFIG, jax.random.key(3))
PROMPTS = [[3, 5, 7], [1, 2, 3, 4, 5, 6], [9]]


def log_probability(prompt, answer):
    [logits] = score(MODEL, [[*prompt, *answer]])
    steps = jax.nn.log_softmax(logits[len(prompt) - 1 : -1])
    return float(sum(steps[i, token] for i, token in enumerate(answer)))


def test_two_tokens_of_six_beams_are_the_best_pair_of_those_beams():
    found = generate(MODEL, PROMPTS, num_beams=6, max_new_tokens=2, stop_ids=())
    for prompt, answer in zip(PROMPTS, found, strict=True):
        firsts = sorted(range(12), key=lambda t, p=prompt: -log_probability(p, [t]))[:6]
        pairs = itertools.product(firsts, range(12))
        assert tuple(answer) == max(pairs, key=lambda a, p=prompt: log_probability(p, a))


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_as_transformers_searches(penalty, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    from convert.to_torch import export
    from glm_jax.ckpts import save_model

    save_model(tmp_path / "m", MODEL, CONFIG)
    export(tmp_path / "m", tmp_path / "hf", layout="transformers")
    theirs = transformers.GlmForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    found = generate(MODEL, PROMPTS, num_beams=4, max_new_tokens=12, length_penalty=penalty)
    for prompt, ours in zip(PROMPTS, found, strict=True):
        wanted = theirs.generate(
            torch.tensor([prompt]), num_beams=4, max_new_tokens=12, do_sample=False,
            length_penalty=penalty, eos_token_id=0, pad_token_id=0, early_stopping=False,
        )[0, len(prompt) :].tolist()  # fmt: skip
        wanted = wanted[: wanted.index(0)] if 0 in wanted else wanted
        assert ours == wanted


def test_no_repeats_and_equal_batches():
    options = {"num_beams": 3, "max_new_tokens": 14, "no_repeat_ngram": 2, "stop_ids": ()}
    together = generate(MODEL, PROMPTS, **options)
    assert together == [generate(MODEL, [prompt], **options)[0] for prompt in PROMPTS]
    for prompt, answer in zip(PROMPTS, together, strict=True):
        pairs = list(itertools.pairwise([*prompt, *answer]))
        assert len(set(pairs)) == len(pairs)
    assert np.all([len(answer) == 14 for answer in together])
