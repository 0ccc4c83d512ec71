"""``python -m train.finetune --task...``: classes and candidates are learned, and used."""

import json

import numpy as np
import pytest

import glm_jax
from glm_jax.ckpts import load_generation, save_model
from tests.chat.models import tiny_config, tiny_model
from tests.text import tiny
from tests.text.every import tiny_tokenizer
from train import finetune
from train.finetuning.tasks import with_f1

FILES = {
    "glm-10b": {"vocab.json": tiny.gpt2_vocab, "merges.txt": tiny.merges},
    "chatglm3-6b": {"tokenizer.model": tiny.chatglm2},
}
pytestmark = pytest.mark.usefixtures("few_devices")
PETS = ("cat", "tiger", "lion", "puma")
BIRDS = ("owl", "robin", "finch", "crow")


def made(folder, name):
    """A model directory with random weights."""
    (folder / "tokenizer").mkdir()
    for file, content in FILES[name].items():
        (folder / "tokenizer" / file).write_bytes(content())
    config = tiny_config(name)
    save_model(folder / "base", tiny_model(name), config,
               generation={"family": name}, tokenizer_dir=folder / "tokenizer")  # fmt: skip
    return folder / "base"


def train(base, folder, *options, steps=30):
    finetune.cli_main([
        str(base), "--data", str(folder / "train.jsonl"), "--output", str(folder / "run"),
        "--heldout", str(folder / "train.jsonl"), "--steps", str(steps), "--batch-size", "8",
        "--seq-len", "24", "--mesh.data", "1", "--optimizer.schedule.peak", "0.02",
        "--optimizer.schedule.warmup", "0", "--every.save", "0", "--every.heldout", "0",
        "--compute.dtype", "float32", "--compute.remat", "none", *options,
    ])  # fmt: skip
    lines = map(json.loads, (folder / "run" / "log.jsonl").read_text().splitlines())
    return [line["task/accuracy"] for line in lines if line["kind"] == "heldout"]


def write(folder, entries):
    (folder / "train.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("glm-10b", "full"),
        pytest.param("chatglm3-6b", "lora", marks=pytest.mark.slow),
        pytest.param("chatglm3-6b", "full", marks=pytest.mark.slow),
    ],
)
def test_classes_are_learned_and_told(name, method, tmp_path):
    words = {"fur": PETS, "feathers": BIRDS}
    write(tmp_path, [{"text": f"the {w}", "label": k} for k, ws in words.items() for w in ws])
    base = made(tmp_path, name)
    extra = ["--lora-targets", "all-linear"] if method == "lora" else []
    first, last = train(base, tmp_path, "--task.name", "classify", "--method", method, *extra)
    assert first < 100 and last == 100
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["task/f1"] == 100
    model = glm_jax.load(tmp_path / "run" / "model")
    assert load_generation(tmp_path / "run" / "model")["labels"] == ["feathers", "fur"]
    tok = tiny_tokenizer(name)
    scores = glm_jax.classify(model, [tok.encode(f"the {w}") for w in (*BIRDS, *PETS)])
    assert scores.argmax(1).tolist() == [0] * 4 + [1] * 4
    if method == "lora":  # what it did not train is as it was
        before = glm_jax.load(base).embedding[...]
        assert np.array_equal(model.embedding[...], before)


@pytest.mark.slow
def test_candidates_for_a_blank_are_learned(tmp_path):
    entries = [
        {"inputs_pretokenized": f"the {w} has [MASK].", "choices_pretokenized": [" fur", " wings"],
         "label": int(w in BIRDS)}
        for w in (*PETS, *BIRDS)
    ]  # fmt: skip
    write(tmp_path, entries)
    base = made(tmp_path, "glm-10b")
    first, last = train(base, tmp_path, "--task.name", "choice", "--method", "full")
    assert first < 100 and last == 100
    model, tok = glm_jax.load(tmp_path / "run" / "model"), tiny_tokenizer("glm-10b")
    assert glm_jax.fill(model, tok, "the owl has [MASK].", max_new_tokens=8)


def test_f1_of_two_classes_is_the_last_ones_and_of_more_their_mean():
    found = {"task": 0.5, "task/accuracy": 60.0, "task/f1-0": 40.0, "task/f1-1": 80.0}
    assert with_f1(found) == {"task": 0.5, "task/accuracy": 60.0, "task/f1": 80.0}
    more = with_f1(found | {"task/f1-2": 30.0, "task/f1-3": float("nan")})  # none of class 3
    assert more["task/f1"] == 50
