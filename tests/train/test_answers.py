"""Questions that are asked during training, with what the model says put into its mouth."""

import jax
import pytest

from glm_jax.chat import Message, render
from glm_jax.data.finetune.blanks import blank_prompt
from glm_jax.data.finetune.forms import Conversation, Pair, Text
from glm_jax.data.finetune.records import Record
from glm_jax.errors import UserError
from glm_jax.nn import GLM, Compute
from tests.chat.models import tiny_config
from tests.text.every import tiny_tokenizer
from train.finetuning import answers
from train.finetuning.answers import Answers, Asking, question

NAME = "chatglm2-6b"
TOK = tiny_tokenizer(NAME)
PAIRS = [Pair(f"the file {i} {'reads ' * i}", f"a buffer {i}") for i in (2, 0, 1)]


def asked(*contents, metrics=("exact", "rouge"), format=NAME, tokenizer=TOK, **options):
    options = {"blank": "", "longest": 64, "batch": 2, "compute": Compute()} | options
    records = [Record("line", content) for content in contents]
    return Answers(Asking(metrics, count=5), records, tokenizer, format, **options)


def test_answers_come_back_in_the_order_of_the_questions(monkeypatch):
    asking = asked(*PAIRS)
    prompts = {tuple(q.prompt): q.truth for q in asking.questions}
    batches = []

    def says(model, prompts_now, **options):
        batches.append((len(prompts_now), options["max_new_tokens"]))
        words = [prompts[tuple(p)] for p in prompts_now]
        said = ["wrong" if word == "a buffer 1" else word for word in words]
        return [TOK.encode(text, add_special_tokens=False) for text in said]

    monkeypatch.setattr(answers, "generate", says)
    model = GLM(tiny_config(NAME), jax.random.key(0))
    assert asking.answers(model) == ["a buffer 2", "a buffer 0", "wrong"]
    assert batches == [(2, 128), (2, 128)]  # every batch of one size: one program is compiled
    found = asking(model)
    assert found["answers/exact"] == pytest.approx(200 / 3)
    assert found["answers/rouge-1"] == pytest.approx(200 / 3)


def test_the_prompt_is_that_of_inference_and_the_last_turn_is_the_truth():
    talk = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"),
            Message("assistant", " d ")]  # fmt: skip
    found = question(Conversation(talk), TOK, NAME, "")
    assert found == (render(talk[:3], TOK, format=NAME), "d")
    assert question(Text("x"), TOK, NAME, "") is None
    glm = tiny_tokenizer("glm-10b")
    assert question(Pair("a", "b"), glm, "", "") == (blank_prompt(glm, "a"), "b")


def test_what_is_too_long_is_not_asked():
    lengths = {q.truth: len(q.prompt) for q in asked(*PAIRS).questions}
    middle = sorted(lengths.values())[1]
    kept = [q.truth for q in asked(*PAIRS, longest=middle).questions]
    assert kept == [truth for truth, length in lengths.items() if length <= middle] != []
    with pytest.raises(UserError, match="no held-out example asks anything in 3 tokens"):
        asked(*PAIRS, longest=3)
