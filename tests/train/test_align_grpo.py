"""``--method grpo``: rewarded answers change the model, exactly again; mistakes are one line."""

import json
import sys

import pytest

from glm_jax.chat import Message
from glm_jax.data.preference.questions import Prompt
from glm_jax.errors import UserError
from glm_jax.peft import load_adapter
from tests.train import aligning, runs, sums
from train import align
from train.alignment.rewards import Reward

NAME = "glm-4-9b"
SHARED = [
    "--optimizer.schedule.warmup", "0", "--every.save", "0", "--every.heldout", "0",
    "--every.log", "1", "--compute.dtype", "float32", "--compute.remat", "none", "--seed", "1",
]  # fmt: skip


def command(module, *options):
    """In a process with one device: on eight virtual ones decoding compiles three times as long."""
    status, _, err = runs.finish([sys.executable, "-m", module, *options])
    assert status == 0, err


def words(folder, output, *options):
    return [
        str(folder / "model"), "--data", str(folder / "sums.jsonl"),
        "--heldout", str(folder / "sums.jsonl"), "--method", "grpo",
        "--reward", "tests.train.sums:exact", "--output", str(output), "--batch-size", "16",
        "--seq-len", "24", "--grpo.max-new-tokens", "6", "--optimizer.schedule.peak", "0.001",
        *SHARED, *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that knows nothing, and questions."""
    folder = tmp_path_factory.mktemp("sums")
    aligning.write_base(folder)
    sums.write_questions(folder / "sums.jsonl", 2)
    return folder


def log_of(output):
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return {
        line["step"]: [line[name] for name in ("loss", "grad_norm", "reward", "length", "kl")]
        for line in lines
        if line["kind"] == "train"
    }


LIVELY = ["--reward", "tests.train.sums:lively", "--lora-targets", "all-linear"]


def test_the_model_answers_is_rewarded_and_changes(folder, tmp_path):
    command("train.align", *words(folder, tmp_path, "--steps", "2", *LIVELY))
    first, second = log_of(tmp_path).values()
    assert first != second
    _, norm, reward, length, kl = second
    assert norm > 0  # some answers were better than others
    assert reward > 0
    assert 1 <= length <= 6
    assert kl > 0  # the first step moved the policy
    assert load_adapter(tmp_path / "adapter").kind == "lora"


@pytest.mark.slow
def test_a_run_in_two_parts_is_the_run_in_one(folder, tmp_path):
    command("train.align", *words(folder, tmp_path / "whole", "--steps", "4", *LIVELY))
    for steps in ("2", "4"):
        command("train.align", *words(folder, tmp_path / "parts", "--steps", steps, *LIVELY))
    whole = log_of(tmp_path / "whole")
    assert log_of(tmp_path / "parts") == whole
    assert whole[1] != whole[2]
    assert whole[4][1] > 0  # the gradient's norm: some answers were better than others


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--tune", "full", "--grpo.updates", "2"],
        ["--grpo.baseline", "reference", "--grpo.scale", "False", "--lm", "0.1", "--grpo.kl", "0"],
    ],
)
def test_other_choices_go_on_exactly_too(folder, tmp_path, options):
    options = [*options, "--grpo.group", "4", "--reward", "tests.train.sums:lively"]
    command("train.align", *words(folder, tmp_path / "whole", "--steps", "4", *options))
    for steps in ("2", "4"):
        command("train.align", *words(folder, tmp_path / "parts", "--steps", steps, *options))
    assert runs.losses(tmp_path / "parts") == runs.losses(tmp_path / "whole")


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
        (["--grpo.group", "7"], "--grpo.group 7 does not divide --batch-size 16"),
        (["--grpo.group", "1"], "group 1 has nothing to compare an answer with"),
        (["--grpo.max-new-tokens", "24"], "leaves no room for a prompt in --seq-len 24"),
        (["--grpo.clip", "0"], "clip is 0; it must be above 0"),
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
        Reward(f"{__name__}:{function}")(prompt, "3")
    assert Reward("tests.train.sums:exact")(prompt, " 2\n") == 1
