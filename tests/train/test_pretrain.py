"""Whole runs, in processes of their own: going on after kill -9 and SIGTERM, and bad input."""

import json
import signal
import time

import pytest

from glm_jax.ckpts import load_model
from glm_jax.text import train_sentencepiece
from tests.train import runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    runs.write_corpus(directory / "corpus")
    texts = (path.read_text() for path in sorted((directory / "corpus").iterdir()))
    train_sentencepiece(texts, 512, directory / "tokenizer")
    return directory / "corpus"


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """A run of 60 steps with a checkpoint every 10."""
    output = tmp_path_factory.mktemp("runs") / "unbroken"
    status, out, err = runs.finish(runs.command(output, corpus, "--every.save", "10"))
    assert status == 0, err
    return output, out


def stop_at(step: int, output, args, number: int):
    """Starts a run and sends a signal once its log has reached a step."""
    process = runs.start(args)
    log, end = output / "log.jsonl", time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if log.exists() and log.read_text().count('"train"') >= step:
            break
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def test_a_run_learns_and_leaves_a_model(unbroken):
    output, out = unbroken
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    heldout = [entry for entry in log if entry["kind"] == "heldout"]
    assert [entry["step"] for entry in heldout] == [0, 60]
    assert heldout[1]["mask"] < heldout[0]["mask"] - 1
    train = [entry for entry in log if entry["kind"] == "train"]
    assert [entry["step"] for entry in train] == list(range(1, 61))
    assert {"loss", "lr", "grad_norm", "tokens", "tokens_per_s", "mask"} <= set(train[-1])
    assert "held-out loss  mask" in out and "tokens/s" in out
    assert load_model(output / "model").config.vocab_size == 512
    assert (output / "model" / "tokenizer" / "tokenizer.model").exists()
    assert list((output / "tensorboard").iterdir())


def test_after_kill_9_the_same_losses_follow(unbroken, corpus, tmp_path):
    args = runs.command(tmp_path / "run", corpus, "--every.save", "10")
    status, _, _ = stop_at(26, tmp_path / "run", args, signal.SIGKILL)
    assert status == -signal.SIGKILL
    status, out, err = runs.finish(args)
    assert status == 0, err
    assert "resuming at step 10" in out or "resuming at step 20" in out or "step 30" in out
    assert runs.losses(tmp_path / "run") == runs.losses(unbroken[0])


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(unbroken, corpus, tmp_path):
    args = runs.command(tmp_path / "run", corpus, "--every.save", "0")
    status, out, err = stop_at(15, tmp_path / "run", args, signal.SIGTERM)
    assert status == 0, err
    (saved,) = (int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert f"asked to stop: saved at step {saved}" in out
    assert not (tmp_path / "run" / "model").exists()
    status, out, err = runs.finish(args)
    assert status == 0, err
    assert f"resuming at step {saved}" in out
    assert runs.losses(tmp_path / "run") == runs.losses(unbroken[0])


def test_twenty_steps_that_are_not_finite_end_the_run(corpus, tmp_path):
    options = ("--optimizer.schedule.peak", "1e30", "--optimizer.clip", "0", "--every.save", "5")
    status, _, err = runs.finish(runs.command(tmp_path / "run", corpus, *options))
    assert status == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert "loss or gradient was not finite in 20 steps in a row" in line
    saved = [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert f"the last checkpoint is of step {max(saved)}" in line
