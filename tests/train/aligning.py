"""A tiny chat model and preferences for it, shared by the tests of alignment."""

from __future__ import annotations

import contextlib
import functools
import json
import random

import jax
import pytest

from glm_jax.ckpts import save_model
from glm_jax.sharding import make_mesh
from tests.chat.models import tiny_config, tiny_model
from tests.text import tiny
from tests.text.every import tiny_tokenizer

NAME = "glm-4-9b"
THINGS = ("file", "buffer", "model")
SHARED = (
    "--optimizer.schedule.warmup", "0", "--every.save", "0", "--every.log", "1", "--every.heldout",
    "0", "--compute.dtype", "float32", "--compute.remat", "none",
)  # fmt: skip
GOOD, BAD = ("reads", "opens", "stream"), ("writes", "closes", "socket")


def write_base(folder, name: str = NAME):
    """A model directory with random weights."""
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.model").write_bytes(tiny.ranks())
    generation = {
        "family": name, "prompt_format": name, "stop_ids": [tiny_tokenizer(name).special.eos]
    }  # fmt: skip
    save_model(folder / "model", tiny_model(name), tiny_config(name), generation=generation,
               tokenizer_dir=folder / "tokenizer")  # fmt: skip
    return folder / "model"


def write_pairs(path, count: int = 160):
    """Of two answers, alike but for one word, that with a good word is chosen."""
    rng = random.Random(0)
    lines = []
    for i in range(count):
        a, b, c = rng.choices(THINGS, k=3)
        answer = f"the {b} {{}} the {c}"
        lines.append(json.dumps({
            "prompt": f"What of the {a} {i}?",
            "chosen": answer.format(rng.choice(GOOD)),
            "rejected": answer.format(rng.choice(BAD)),
        }))  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


def words(base, data, output, method, *options):
    """For pairs: the command line of a run on all devices."""
    return [
        str(base), "--data", str(data), "--output", str(output), "--method", method,
        "--steps", "30", "--batch-size", "8", "--seq-len", "48", "--heldout-percent", "20",
        "--optimizer.schedule.peak", "0.02", *SHARED, "--seed", "3", *options,
    ]  # fmt: skip


def rewarded_words(folder, output, method, *options):
    """For the model's own answers: that of a run on ``sums.jsonl`` of a folder with a base."""
    return [
        str(folder / "model"), "--data", str(folder / "sums.jsonl"),
        "--heldout", str(folder / "sums.jsonl"), "--method", method,
        "--reward", "tests.train.sums:lively", "--output", str(output), "--batch-size", "8",
        "--seq-len", "24", f"--{method}.max-new-tokens", "6", f"--{method}.group", "4",
        "--optimizer.schedule.peak", "0.001", "--lora-targets", "all-linear", "--steps", "2",
        "--heldout-batches", "1",
        *SHARED, "--seed", "1", *options,
    ]  # fmt: skip


@contextlib.contextmanager
def one_device():
    """Runs have one device: with eight virtual ones, all of one CPU, everything compiles longer."""
    with pytest.MonkeyPatch.context() as patch:
        one = functools.partial(make_mesh, devices=jax.devices()[:1])
        patch.setattr("train.finetuning.base.make_mesh", one)
        yield


def entries(output, kind: str) -> list[dict]:
    """Of the log: "train" or "heldout"."""
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]
