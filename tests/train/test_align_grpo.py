"""``--method grpo``: rewarded answers become likelier, and nothing is mistaken on the way there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glm_jax
from glm_jax.chat import Message
from glm_jax.data.preference import answer_rows
from glm_jax.data.preference.questions import Prompt
from glm_jax.errors import UserError
from glm_jax.peft import combine, load_adapter
from tests.train import aligning, sums
from train import align, cli, demo_align
from train.alignment.grpo import GrpoRun
from train.alignment.losses import answer_logps
from train.alignment.options import DEFAULTS
from train.alignment.rewards import RewardFunction


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with aligning.one_device():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that knows nothing, and questions."""
    folder = tmp_path_factory.mktemp("sums")
    aligning.write_base(folder)
    sums.write_questions(folder / "sums.jsonl", 3)
    return folder


def words(folder, output, *options):
    return aligning.rewarded_words(folder, output, "grpo", *options)


def test_the_model_answers_is_rewarded_and_changes(folder, tmp_path):
    align.cli_main(words(folder, tmp_path))
    first, second = aligning.entries(tmp_path, "train")
    assert first["loss"] != second["loss"]
    assert second["grad_norm"] > 0  # some answers were better than others
    assert second["reward"] > 0
    assert 1 <= second["length"] <= 6
    assert second["kl"] > 0  # the first step moved the policy
    assert load_adapter(tmp_path / "adapter").kind == "lora"


def test_what_is_sampled_is_what_the_loss_takes_it_for(folder, tmp_path):
    """Each token is the likeliest after the noise of its seed is added to the logits that follow
    from the whole row, and the loss gives it the probability that these logits do."""
    argv = words(folder, tmp_path)
    run = GrpoRun.make(cli.parse(DEFAULTS, "dpo", "align", argv, option="--method"))
    with jax.set_mesh(run.mesh):
        policy = combine(run.fresh().model, run.rest)
        prompts = [run.questions["train"][i] for i in (0, 1)]
        made = run.sampler(policy, prompts, 4, (5, 6))
        rows = answer_rows(made.answers, run.config, 24)
        logps = np.asarray(jax.jit(answer_logps, static_argnums=2)(policy, rows, run.args.compute))
    seeds = np.random.default_rng([5, 6]).integers(2**32, size=2)
    logits = glm_jax.score(policy, [[*each.prompt, *each.answer] for each in made.answers])
    for i, (prompt, answer) in enumerate(made.answers):
        assert prompt == prompts[i // 4].ids
        seed = (int(seeds[i // 4]) + i % 4 * 0x9E3779B9) % 2**32
        at = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        found = jax.nn.log_softmax(jnp.asarray(logits[i])[at])
        for t, (token, row) in enumerate(zip(answer, found, strict=True)):
            key = jax.random.fold_in(jax.random.key(np.uint32(seed)), t)
            noisy = (row + jax.random.gumbel(key, row.shape))[: run.tokenizer.used]
            assert noisy.argmax() == token
            assert logps[i, at][t] == pytest.approx(float(row[token]), abs=1e-5)
        assert not np.delete(logps[i], np.r_[at]).any()
        assert made.rewards[i // 4, i % 4] == sums.lively("", run.sampler.text(answer), None)


@pytest.mark.slow
def test_prompts_are_told_apart(tmp_path):
    """To one half of the questions a word's letters are to have an even sum, to the other an odd
    one, which no answer to all of them has more than half of the time."""
    aligning.write_base(tmp_path)
    sums.write_parities(tmp_path / "sums.jsonl")
    align.cli_main(
        words(
            tmp_path, tmp_path / "run", "--reward", "tests.train.sums:parity", "--steps", "60",
            "--batch-size", "64", "--grpo.group", "16", "--grpo.max-new-tokens", "1",
            "--grpo.kl", "0", "--tune", "full", "--optimizer.schedule.peak", "0.01",
        )
    )  # fmt: skip
    before, after = aligning.entries(tmp_path / "run", "heldout")
    assert before["reward"] < 0.75
    assert (
        np.mean([line["reward"] for line in aligning.entries(tmp_path / "run", "train")[-5:]]) > 0.9
    )
    assert after["reward"] > 0.75


@pytest.mark.slow
@pytest.mark.parametrize(("method", "reached"), [("grpo", 0.8), ("ppo", 0.6)])
def test_a_small_model_learns_to_add(method, reached, tmp_path):
    found = demo_align.main(demo_align.Options(output=str(tmp_path), method=method))
    assert found["before"] < 0.3
    assert found["after"] > reached


def failing(prompt, response, answer):
    raise KeyError("no such thing")


def wordy(prompt, response, answer):
    return "good"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward", "exact"], "--reward exact is no module:function, such as mine:exact"),
        (["--reward", "nowhere:exact"], "cannot import nowhere: ModuleNotFoundError"),
        (["--reward", "tests.train.sums:near"], "tests.train.sums has no function near"),
        (["--reward", ""], "by --reward module:function or by --reward-model DIR; give one"),
        (["--reward-model", "rm"], "by --reward module:function or by --reward-model DIR; give"),
        (["--grpo.group", "7"], "--grpo.group 7 does not divide --batch-size 8"),
        (["--grpo.group", "1"], "group 1 has nothing to compare an answer with"),
        (["--grpo.max-new-tokens", "24"], "leaves no room for a prompt in --seq-len 24"),
        (["--grpo.clip", "0"], "clip is 0; it must be above 0"),
        (["--ppo.trace", "0.9"], "--ppo.* is for --method ppo, not for grpo"),
        (["--debias-length", "True"], "--debias-length is about pairs"),
    ],
)
def test_mistakes_are_one_line(options, message, folder, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        align.cli_main(words(folder, tmp_path, *options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("failing", r"failed on an answer to q.jsonl, line 3: KeyError: 'no such thing'"),
        ("wordy", r"gave 'good' for an answer to q.jsonl, line 3; a reward is a number"),
    ],
)
def test_a_reward_function_that_fails_is_named(function, message):
    prompt = Prompt([1], [Message("user", "1 + 1 =")], None, "2", "q.jsonl, line 3")
    with pytest.raises(UserError, match=message):
        RewardFunction(f"{__name__}:{function}")([prompt], ["3"])
    assert RewardFunction("tests.train.sums:exact")([prompt], [" 2\n"]) == [1]
