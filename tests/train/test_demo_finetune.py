"""``make demo-finetune``: its questions, and a chat model made of one that fills blanks."""

import dataclasses
import json

import jax
import pytest

import glm_jax
from glm_jax.ckpts import load_generation, save_model
from glm_jax.nn import GLM
from tests.text.every import tiny_tokenizer
from train import demo_finetune, doc_questions, finetune
from train.demo_finetune import Options
from train.loop import Intervals
from train.presets import TINY

LIBRARY = {
    "pets.py": '''
        """Animals that live with people.  They eat."""
        class Cat:
            """A cat with a name."""
            def call(self, loudly=True, *, times=1):
                """Calls the cat by its name.

                It may come.
                """
            def _purr(self):
                """Not to be called."""
        def cat_of(person):
            """Calls the cat by its name."""
        async def adopt(kind):
            """Takes an animal of this kind home."""
        ''',
    "_hidden.py": '"""A module that nobody is told of."""',
    "broken.py": "def (",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    root = tmp_path_factory.mktemp("library")
    for name, text in LIBRARY.items():
        lines = text.strip("\n").split("\n")
        (root / name).write_text("\n".join(line.removeprefix(" " * 8) for line in lines) + "\n")
    return root


def test_what_the_library_documents(library):
    found = list(doc_questions.things(library))
    assert [(t.kind, t.name, t.summary) for t in found] == [
        ("module", "pets", "Animals that live with people."),
        ("class", "pets.Cat", "A cat with a name."),
        ("function", "pets.Cat.call", "Calls the cat by its name."),
        # cat_of says no more than Cat.call
        ("function", "pets.adopt", "Takes an animal of this kind home."),
    ]
    assert found[2].call == "pets.Cat.call(self, loudly=True, *, times=1)"
    assert found[2].short_call == "pets.Cat.call(loudly)"


def test_questions_about_it(library, tmp_path):
    module, cat, call, _ = doc_questions.things(library)
    assert doc_questions.conversation(module) == [
        ("What is the module pets?", "Animals that live with people.")
    ]
    assert doc_questions.conversation(cat)[0][0] == "What is the class pets.Cat?"
    asked = [("What does pets.Cat.call(loudly) do?", "Calls the cat by its name."),
             ("And how is it called?", call.call)]  # fmt: skip
    assert doc_questions.conversation(call) == asked[: len(doc_questions.conversation(call))]
    assert doc_questions.write(tmp_path / "q.jsonl", [asked]) == 1
    assert json.loads((tmp_path / "q.jsonl").read_text()) == {
        "prompt": asked[1][0], "response": asked[1][1], "history": [list(asked[0])]
    }  # fmt: skip


def test_facts_are_asked_about_in_several_ways(library):
    known = [doc_questions.Thing("module", name, "", "", "Merges.") for name in ("glob", "this")]
    found = doc_questions.facts([*doc_questions.things(library), *known])
    assert [t.name for t in found] == ["glob"]
    found = [next(doc_questions.things(library)), *found]
    talks = doc_questions.fact_conversations(found)
    assert [("What is pets?", "Animals that live with people.")] in talks
    assert [("What is pets?", "Animals that live with people."),
            ("And what about glob?", "Merges.")] in talks  # fmt: skip
    assert len(talks) == 2 * len(doc_questions.ASKED) + 1
    assert not any(q == doc_questions.HELD_OUT.format("pets") for talk in talks for q, _ in talk)


def test_a_sentence_does_not_end_inside_brackets():
    import ast

    tree = ast.parse('"""Heap queues (a.k.a. priority queues).  They sort."""')
    assert doc_questions.summary(tree) == "Heap queues (a.k.a. priority queues)."


def test_held_out_are_a_few_and_always_the_same():
    made = [doc_questions.Thing("function", f"m.f{i}", "", "", "") for i in range(2000)]
    held = [t for t in made if doc_questions.held_out(t)]
    assert held == [t for t in made if doc_questions.held_out(t)]
    assert 40 < len(held) < 120


@pytest.mark.slow
def test_a_model_that_fills_blanks_becomes_one_that_answers(library, tmp_path, capsys):
    tokenizer = tiny_tokenizer("trained")
    config = TINY.model.config(tokenizer.vocab_size, tokenizer.special)
    model = jax.jit(lambda key: GLM(config, key))(jax.random.key(0))
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    save_model(tmp_path / "model", model, config, tokenizer_dir=tmp_path / "tokenizer")
    things = list(doc_questions.things(library))
    out = tmp_path / "chat"
    out.mkdir()
    for name in ("train", "heldout"):
        doc_questions.write(
            out / f"{name}.jsonl", 4 * list(map(doc_questions.conversation, things))
        )
    texts = ({"text": f"The file {i} reads, the buffer writes. " * 4} for i in range(40))
    (out / "general.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))

    options = Options(output=str(out), steps=2, max_minutes=0)
    args = demo_finetune.finetune_options(tmp_path / "model", out, options)
    small = {"seq_len": 64, "batch_size": 8, "every": Intervals(1, 0, 0), "heldout_batches": 1}
    assert finetune.main(dataclasses.replace(args, **small))
    assert load_generation(out / "model")["prompt_format"] == "chatglm-6b"
    chat = glm_jax.load(out / "model")
    answers = demo_finetune.answers(chat, tokenizer, things)
    assert len(answers) == len(things)
    demo_finetune.show(things, ["old"] * 4, answers)
    demo_finetune.print_scores(things, ["old"] * 4, [thing.summary for thing in things])
    printed = capsys.readouterr().out
    assert "before   0 word for word as documented; ROUGE-L 0.0 %" in printed
    assert "after    4 word for word as documented; ROUGE-L 100.0 %" in printed
    assert all(word in printed for word in ("old", "the documentation", "pets.Cat"))
