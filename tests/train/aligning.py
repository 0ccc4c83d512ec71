"""A tiny chat model and preferences for it, shared by the tests of alignment."""

from __future__ import annotations

import json
import random

from glm_jax.ckpts import save_model
from tests.chat.models import tiny_config, tiny_model
from tests.text import tiny
from tests.text.every import tiny_tokenizer

NAME = "glm-4-9b"
THINGS = ("file", "buffer", "model")
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
    return [
        str(base), "--data", str(data), "--output", str(output), "--method", method,
        "--steps", "30", "--batch-size", "8", "--seq-len", "48", "--mesh.data", "8",
        "--heldout-percent", "20",
        "--optimizer.schedule.peak", "0.02", "--optimizer.schedule.warmup", "0",
        "--every.save", "0", "--every.log", "1", "--every.heldout", "0",
        "--compute.dtype", "float32", "--compute.remat", "none", "--seed", "3", *options,
    ]  # fmt: skip


def heldout(output) -> list[dict]:
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "heldout"]
