"""``python -m train.align``: every method goes on exactly, and over a mesh does the same."""

import signal
import sys
import time

import pytest

from tests.train import aligning, runs, sums
from tests.train.test_align import PAIRED
from train import align

pytestmark = pytest.mark.slow
REWARDED = {
    "grpo": ["grpo"],
    "grpo, full": ["grpo", "--tune", "full", "--grpo.updates", "2"],
    "grpo, reference": ["grpo", "--grpo.baseline", "reference", "--grpo.scale", "False",
                        "--grpo.kl", "0", "--lm", "0.1"],
    "ppo": ["ppo"],
    "ppo, full": ["ppo", "--tune", "full", "--ppo.baseline", "reference", "--ppo.whiten", "False",
                  "--ppo.kl", "0", "--lm", "0.1"],
}  # fmt: skip
EVERY = [*PAIRED, *REWARDED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    aligning.write_base(folder)
    aligning.write_pairs(folder / "pairs.jsonl")
    sums.write_questions(folder / "sums.jsonl", 3)
    return folder


def command(folder, output, kind, *options):
    """Of a run in a process with one device."""
    method, *own = PAIRED.get(kind) or REWARDED[kind]
    if kind in PAIRED:
        data = folder / "pairs.jsonl"
        words = aligning.words(folder / "model", data, output, method, *own)
    else:
        words = aligning.rewarded_words(folder, output, method, *own)
    steps = "20" if kind in PAIRED else "8"
    return [sys.executable, "-m", "train.align", *words, "--steps", steps, *options]


def finish(*args):
    status, out, err = runs.finish(command(*args))
    assert status == 0, err
    return out


def numbers(output):
    """Of every step: what is learned from, and what came of it."""
    names = ("loss", "grad_norm", "reward", "kl")
    return {
        line["step"]: [line[name] for name in names if name in line]
        for line in aligning.entries(output, "train")
    }


@pytest.mark.parametrize("kind", EVERY)
def test_a_run_in_two_parts_is_the_run_in_one(kind, folder, tmp_path):
    finish(folder, tmp_path / "whole", kind)
    finish(folder, tmp_path / "parts", kind, "--steps", "3")
    assert "resuming at step 3" in finish(folder, tmp_path / "parts", kind)
    whole = numbers(tmp_path / "whole")
    assert numbers(tmp_path / "parts") == whole
    assert whole[1] != whole[2]
    ends = [aligning.entries(tmp_path / name, "heldout")[-1] for name in ("whole", "parts")]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("kind", EVERY)
def test_after_kill_9_the_same_losses_follow(kind, folder, tmp_path):
    saving = "--every.save", "2"
    finish(folder, tmp_path / "whole", kind, *saving)
    process = runs.start(command(folder, tmp_path / "killed", kind, *saving))
    log, end = tmp_path / "killed" / "log.jsonl", time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        if log.exists() and log.read_text().count('"train"') >= 5:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL  # not at its end before
    assert "resuming at step" in finish(folder, tmp_path / "killed", kind, *saving)
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["dpo", "reward, full"])
def test_eight_devices_do_what_one_does(kind, folder, tmp_path):
    finish(folder, tmp_path / "one", kind)
    align.cli_main(command(folder, tmp_path / "eight", kind)[3:])
    one, eight = numbers(tmp_path / "one"), numbers(tmp_path / "eight")
    assert one.keys() == eight.keys()
    for step in range(1, 6):  # later, rounding has grown
        assert eight[step] == pytest.approx(one[step], rel=1e-3)
