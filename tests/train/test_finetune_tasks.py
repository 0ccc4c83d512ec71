"""``python -m train.finetune --task...``: classes and candidates are learned, and used."""

import json
from typing import get_args

import numpy as np
import pytest

import glm_jax
from glm_jax.ckpts import load_generation, save_model
from glm_jax.data.tasks import Loss, TaskOptions
from glm_jax.data.tasks.cloze import Cloze
from glm_jax.nn import Compute
from tests.chat.models import tiny_config, tiny_model
from tests.text import tiny
from tests.text.every import tiny_tokenizer
from train import finetune, heldout
from train.finetuning import tasks
from train.finetuning.tasks import TaskData, choice_losses

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


@pytest.mark.slow
def test_a_pronoun_is_learned_with_the_loss_that_glm_took(tmp_path):
    entries = [
        {"text": f"The {a} saw the {b} and it ran.", "label": true,
         "target": {"span1_text": f"the {name}", "span2_text": "it", "span2_index": 6},
         "candidates": [{"text": f"the {b if name == a else a}"}, {"text": "it"}]}
        for a, b in zip(PETS, BIRDS, strict=True) for name, true in ((a, True), (b, False))
    ]  # fmt: skip
    write(tmp_path, entries)
    base = made(tmp_path, "glm-10b")
    options = ["--task.name", "wsc", "--task.pattern", "2", "--task.loss", "mix"]
    options += ["--task.length-penalty", "1", "--seq-len", "64"]
    first, last = train(base, tmp_path, *options, "--method", "full")
    assert first < 100 and last == 100


def task_data(name, records):
    return TaskData(TaskOptions(name), {"heldout": records, "train": records}, ())


def test_f1_of_two_classes_is_the_last_ones_and_of_more_their_mean():
    found = {"task": 0.5, "task/accuracy": 60.0, "task/f1-0": 40.0, "task/f1-1": 80.0}
    boolq = task_data("boolq", [])
    assert boolq.numbers(found) == {"task": 0.5, "task/accuracy": 60.0, "task/f1": 80.0}
    more = boolq.numbers(found | {"task/f1-2": 30.0, "task/f1-3": float("nan")})  # none of class 3
    assert more["task/f1"] == 50


def test_em_is_of_questions_or_of_mentions():
    record = task_data("record", [])
    assert record.shares == ("accuracy", "overlap")
    found = record.numbers({"task/accuracy": 60.0, "task/overlap": 70.0})
    assert found == {"task/accuracy": 60.0, "task/em": 60.0, "task/f1": 70.0}
    answer = lambda place, question: (place, Cloze("x", (" No", " Yes"), 1, question=question))
    records = [answer("1", "0"), answer("1", "0"), answer("1", "1"), answer("2", "0")]
    multirc = task_data("multirc", records)
    assert multirc.questions == 3 and multirc.shares == ("accuracy", "f1-0", "f1-1", "whole")
    found = {"task/f1-0": 1.0, "task/f1-1": 2.0, "task/accuracy": 3.0, "task/whole": 4.0}
    assert multirc.numbers(found) == {"task/accuracy": 3.0, "task/f1": 2.0, "task/em": 4.0}


SCORES = np.float32([[-1.0, -2.5, -0.5, -4.0], [-3.0, -0.2, -1.0, 0.0]])
LABEL = np.int32([0, 2])
RIVALS = [[1, 2, 3], [0, 1]]  # of the second row the last one is not there


def expected(loss, row):
    """Of one example, in words of its own."""
    y, wrong = float(SCORES[row, LABEL[row]]), [float(SCORES[row, i]) for i in RIVALS[row]]
    if loss == "hinge":
        return sum(max(0.0, 1 + s - y) for s in wrong)
    if loss == "adapet":
        return sum(wrong) - y
    chosen = -np.log(np.exp(y) / (np.exp(y) + sum(map(np.exp, wrong))))
    return {"cross_entropy": chosen, "generative": -y, "mix": chosen - y}[loss]


@pytest.mark.parametrize("loss", get_args(Loss))
def test_each_loss_is_its_formula(loss):
    valid = np.array([[True] * 4, [True, True, True, False]])
    credit = np.eye(4, dtype=np.float32)[LABEL]
    found = choice_losses(np.where(valid, SCORES, -3e38), LABEL, credit, valid, loss)
    np.testing.assert_allclose(found, [expected(loss, 0), expected(loss, 1)], rtol=1e-5)


def test_what_is_right_as_well_does_not_compete():
    credit = np.float32([[1, 0, 1, 0]])
    [found] = choice_losses(SCORES[:1], LABEL[:1], credit, True, "cross_entropy")
    assert found == pytest.approx(np.log(1 + np.exp(-1.5) + np.exp(-3.0)), rel=1e-5)


def test_a_question_is_whole_when_all_of_its_answers_are_right(monkeypatch):
    """Four answers of two questions, over two batches; the second question has one wrong."""
    chosen = np.float32([[0, 1], [1, 0], [0, 1], [0, 1]])
    monkeypatch.setattr(tasks, "class_scores", lambda model, batch, *_: batch["scores"])
    batches = [
        {"scores": chosen[i], "label": np.int32([1, 0, 1, 0])[i],
         "weight": np.ones(2, np.float32), "question": np.int32([0, 0, 1, 1])[i]}
        for i in (slice(0, 2), slice(2, 4))
    ]  # fmt: skip
    loss = tasks.task_loss.__wrapped__(Compute(), questions=3)
    sums = sum(np.array(loss(None, batch, None)[1]["whole"]) for batch in batches)
    assert sums.tolist() == [[2, 1, 0], [2, 2, 0]]
    assert heldout._mean(*sums) == 0.5  # of the two that were seen
