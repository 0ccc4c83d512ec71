"""``python -m train.align``: the methods that learn from pairs learn what they should."""

import dataclasses

import jax
import numpy as np
import pytest

import glm_jax
from glm_jax.ckpts import load_config
from glm_jax.data.preference import Pairs, PreferenceData, answer_rows
from glm_jax.errors import UserError
from tests.train import aligning
from train import align
from train.alignment.options import DEFAULTS

PAIRED = {
    "dpo": ["dpo", "--lora-targets", "all-linear"],
    "reward": ["reward", "--lora-targets", "all-linear", "--lm", "0.1"],
    "dpo, full": ["dpo", "--tune", "full", "--lm", "0.1", "--batch-size", "16",
                  "--accumulate", "2"],
    "reward, full": ["reward", "--tune", "full"],
}  # fmt: skip
QUICK = ("dpo", "reward")
EVERY = [*QUICK, *(pytest.param(k, marks=pytest.mark.slow) for k in PAIRED if k not in QUICK)]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with aligning.one_device():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    aligning.write_base(folder)
    aligning.write_pairs(folder / "pairs.jsonl")
    return folder


def words(folder, output, kind, *options):
    method, *own = PAIRED[kind]
    data = folder / "pairs.jsonl"
    return aligning.words(folder / "model", data, output, method, *own, *options)


@pytest.fixture(scope="module")
def run_of(folder, tmp_path_factory):
    """Each kind's finished run, made when it is first asked for."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("runs") / kind.replace(", ", "-")
            align.cli_main(words(folder, made[kind], kind))
        return made[kind]

    return of


@pytest.fixture(scope="module")
def heldout_pairs(folder):
    data = PreferenceData(files=(str(folder / "pairs.jsonl"),), heldout_percent=20)
    base = folder / "model"
    own = glm_jax.load_tokenizer(base), load_config(base), aligning.NAME
    return Pairs(data, *own, split="heldout", seq_len=48)


@pytest.mark.parametrize("kind", EVERY)
def test_held_out_pairs_are_told_apart(kind, run_of):
    before, after = aligning.entries(run_of(kind), "heldout")
    assert before["accuracy"] < 0.9 < after["accuracy"]
    assert after["loss"] < before["loss"]


def test_dpo_begins_where_the_policy_is_its_own_reference(run_of):
    before, _ = aligning.entries(run_of("dpo"), "heldout")
    assert before["dpo"] == pytest.approx(np.log(2), rel=1e-5)
    assert before["margin"] == pytest.approx(0, abs=1e-5)


def answer_likelihoods(model, pairs):
    """Log probability of each whole answer [N, 2], from the logits that ``score`` gives."""
    answers = [answer for i in range(len(pairs)) for answer in pairs[i]]
    found = []
    for answer, logits in zip(
        answers, glm_jax.score(model, [a + b for a, b in answers]), strict=True
    ):
        logps = jax.nn.log_softmax(logits[len(answer.prompt) - 1 : -1])
        found.append(sum(float(logps[t, i]) for t, i in enumerate(answer.answer)))
    return np.array(found).reshape(-1, 2)


def test_what_dpo_writes_prefers_as_the_log_says(folder, run_of, heldout_pairs):
    base = answer_likelihoods(glm_jax.load(folder / "model"), heldout_pairs)
    adapted = glm_jax.load(folder / "model", adapter=run_of("dpo") / "adapter")
    margin = 0.1 * (answer_likelihoods(adapted, heldout_pairs) - base) @ [1, -1]
    logged = aligning.entries(run_of("dpo"), "heldout")[-1]
    assert (margin > 0).mean() == pytest.approx(logged["accuracy"])
    assert margin.mean() == pytest.approx(logged["margin"], rel=1e-3)
    assert np.log1p(np.exp(-margin)).mean() == pytest.approx(logged["dpo"], rel=1e-3)


def test_a_reward_model_is_loaded_and_ranks_as_the_log_says(run_of, heldout_pairs):
    model = glm_jax.load(run_of("reward") / "model")
    assert model.config.num_labels == 1
    every = [answer for i in range(len(heldout_pairs)) for answer in heldout_pairs[i]]
    rows = answer_rows(every, model.config, 48)
    fields = ("tokens", "positions", "k_start", "k_end", "lengths")
    scores = jax.jit(type(model).classify)(model, *(rows[name] for name in fields))
    chosen, rejected = np.asarray(scores).reshape(-1, 2).T
    logged = aligning.entries(run_of("reward"), "heldout")[-1]
    assert (chosen > rejected).mean() == pytest.approx(logged["accuracy"])
    assert (chosen - rejected).mean() == pytest.approx(logged["margin"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--dpo.beta", "0"], "beta is 0; it must be above 0"),
        (["--ranking.l2", "1"], "--ranking.* is for --method reward, not for dpo"),
        (["--reward", "a:b"], "reward the answers of --method grpo and ppo, not dpo's"),
        (["--lora-dropout", "0.1"], "--lora-dropout is not for dpo"),
        (["--chat-format", "gpt"], "gpt"),
        (["--tune", "full", "--base-quant", "int8"], "--base-quant is for lora"),
        (["--method", "rlhf"], "invalid choice 'rlhf' for argument '--method'"),
        (["--seq-len", "4"], "ids do not fit in 4"),
    ],
)
def test_mistakes_are_one_line(options, message, folder, tmp_path):
    data = folder / "pairs.jsonl"
    with pytest.raises(UserError, match=message) as error:
        align.cli_main(aligning.words(folder / "model", data, tmp_path, "dpo", *options))
    assert "\n" not in str(error.value)


def test_every_method_has_defaults_that_say_it():
    for name, defaults in DEFAULTS.items():
        assert dataclasses.asdict(defaults)["method"] == name
