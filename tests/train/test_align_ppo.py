"""``--method ppo``: what it judges and writes; and reward models as judges."""

import dataclasses

import jax
import numpy as np
import pytest

import glm_jax
from glm_jax.chat import Message
from glm_jax.ckpts import load_config, load_model, save_model
from glm_jax.ckpts.trees import flat_paths, to_plain
from glm_jax.data.preference import Answer, answer_rows, answer_to
from glm_jax.data.preference.questions import Prompt
from glm_jax.errors import UserError
from glm_jax.nn import GLM, Compute
from glm_jax.peft import combine, load_adapter
from glm_jax.sharding import MeshConfig, make_mesh
from tests.chat.models import tiny_config
from tests.text.every import tiny_tokenizer
from tests.train import aligning, small, sums
from train import align, cli
from train.alignment.losses import answer_logps
from train.alignment.options import DEFAULTS
from train.alignment.ppo import PpoRun, PpoStep
from train.alignment.rewards import RewardModel
from train.trainer import put_batch

PLAIN = Compute(dtype="float32", remat="none")


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with aligning.one_device():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that knows nothing, questions, and a reward model that knows nothing."""
    folder = tmp_path_factory.mktemp("sums")
    aligning.write_base(folder)
    sums.write_questions(folder / "sums.jsonl", 3)
    scoring = tiny_config(aligning.NAME).replace(num_labels=1)
    save_model(folder / "judge", GLM(scoring, jax.random.key(2)), scoring,
               generation={"family": aligning.NAME, "prompt_format": aligning.NAME},
               tokenizer_dir=folder / "tokenizer")  # fmt: skip
    return folder


def words(folder, output, *options):
    return aligning.rewarded_words(folder, output, "ppo", *options)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    argv = words(folder, tmp_path_factory.mktemp("run"), "--ppo.kl", "0.5", "--ppo.whiten", "False",
                 "--ppo.trace", "1")  # fmt: skip
    return PpoRun.make(cli.parse(DEFAULTS, "dpo", "align", argv, option="--method"))


@pytest.mark.slow
def test_the_policy_is_written_without_the_head_that_judged_it(folder, tmp_path):
    options = "--reward", "", "--reward-model", str(folder / "judge")
    align.cli_main(words(folder, tmp_path, "--tune", "full", *options))
    first, second = aligning.entries(tmp_path, "train")
    assert first["loss"] != second["loss"]
    assert second["grad_norm"] > 0
    assert second["kl"] != 0  # the first step moved the policy
    assert load_config(tmp_path / "model") == load_config(folder / "model")
    before, after = (flat_paths(to_plain(load_model(f / "model"))) for f in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert not (before["layers.mlp.up_proj.weight"] == after["layers.mlp.up_proj.weight"]).all()


@pytest.mark.slow
def test_a_lora_is_written_for_the_base(folder, tmp_path):
    align.cli_main(words(folder, tmp_path, "--steps", "1"))
    adapter = load_adapter(tmp_path / "adapter")
    assert adapter.kind == "lora"
    assert adapter.settings["base"]["num_labels"] == 0
    glm_jax.load(folder / "model", adapter=tmp_path / "adapter")


def test_the_score_comes_last_and_divergence_costs(run):
    """With a trace of 1 a token's return is all that follows: the score less its divergence."""
    moved = jax.tree.map(lambda x: x * 1.1, run.reference)
    step = PpoStep(dataclasses.replace(run, reference=moved))
    with jax.set_mesh(run.mesh):
        policy = combine(run.fresh().model, run.rest)
        made = run.sampler(policy, [run.questions["train"][i] for i in (0, 3)], 4, (5, 6))
        rows = put_batch(answer_rows(made.answers, run.config, 24), run.mesh)
        scores = np.arange(8, dtype=np.float32).reshape(2, 4)
        found, numbers = jax.device_get(step.judged(policy, rows, scores))
        logps = [np.asarray(answer_logps(m, rows, PLAIN)) for m in (policy, moved)]
    np.testing.assert_allclose(found["old"], logps[0], atol=1e-5)
    apart = logps[0] - logps[1]
    assert numbers["kl"] == pytest.approx(float(apart.sum() / rows["loss_weights"].sum()), rel=1e-3)
    for i, (prompt, answer) in enumerate(made.answers):
        at = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        expected = i - 0.5 * np.cumsum(apart[i, at][::-1])[::-1]
        np.testing.assert_allclose(found["returns"][i, at], expected, atol=1e-4)
        gained = found["returns"][i] - found["values"][i]
        np.testing.assert_allclose(found["advantages"][i, at], gained[at], atol=1e-5)


def test_a_reward_model_scores_answers_as_it_read_them_in_training(folder):
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    judge = RewardModel(str(folder / "judge"), mesh, 24, 2, PLAIN)
    asked = [[Message("user", text)] for text in ("file?", "the buffer", "model")]
    prompts = [Prompt([1], messages, None, None, "q.jsonl, line 1") for messages in asked]
    responses = ["opens the file", "", "reads " * 40]
    found = judge(prompts, responses)
    tokenizer, model = tiny_tokenizer(aligning.NAME), load_model(folder / "judge")
    answers = [answer_to(messages, response or "x", tokenizer, aligning.NAME)
               for messages, response in zip(asked, responses, strict=True)]  # fmt: skip
    answers[1] = Answer(answers[1].prompt, answers[1].answer[-1:])  # nothing but its end
    assert len(answers[2]) > 24  # cut, its end kept
    cut = answers[2].answer[: 23 - len(answers[2].prompt)] + answers[2].answer[-1:]
    whole = [[*a.prompt, *a.answer] for a in (*answers[:2], Answer(answers[2].prompt, cut))]
    np.testing.assert_allclose(found, glm_jax.classify(model, whole)[:, 0], atol=1e-5)


@pytest.mark.parametrize("config", [small.QUIET, tiny_config("chatglm-6b")], ids=["glm", "chatglm"])
def test_a_score_is_of_the_answer_where_a_prompt_does_not_see_it(config):
    config = config.replace(num_labels=1)
    special = config.special
    mask = special.mask if config.position == "learned" else special.gmask
    prompt = [20, 21, mask, special.sop]
    scores = glm_jax.classify(
        GLM(config, jax.random.key(0)), [[*prompt, 30, 31], [*prompt, 30, 32], [*prompt, 30]]
    )
    assert len(set(scores[:, 0].tolist())) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward", "", "--reward-model", "model"], "model has 0 scores and not one"),
        (["--ppo.trace", "1.5"], "trace is 1.5; it is a share in"),
        (["--ppo.value-clip", "0"], "value_clip is 0; it must be above 0"),
        (["--grpo.kl", "0"], "--grpo.* is for --method grpo, not for ppo"),
    ],
)
def test_mistakes_are_one_line(options, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message) as error:
        align.cli_main(words(folder, tmp_path, *options))
    assert "\n" not in str(error.value)


def test_a_reward_model_is_no_base(folder, tmp_path):
    argv = words(folder, tmp_path)
    with pytest.raises(UserError, match="has a head already; --method ppo adds one of its own"):
        align.cli_main([str(folder / "judge"), *argv[1:]])
