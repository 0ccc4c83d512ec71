"""Rows of a task: what is read, where it is scored, and their order."""

import json

import numpy as np
import pytest

from glm_jax.data.tasks import TaskLoader, TaskOptions
from glm_jax.data.tasks.examples import candidates, choice, labelled
from glm_jax.data.tasks.records import LabelledText
from glm_jax.data.tasks.superglue import Cloze
from glm_jax.errors import UserError
from tests.chat.models import tiny_config
from tests.text.every import tiny_tokenizer

GLM, GLM4 = "glm-10b", "glm-4-9b"
TOK, CONFIG = tiny_tokenizer(GLM), tiny_config(GLM)
SPECIAL = TOK.special
encode = lambda text: TOK.encode(text, add_special_tokens=False)


def test_candidates_of_several_tokens_end_in_eop():
    cloze = Cloze("the [MASK] reads", (" file", " buffer stream"), 1)
    made = choice(cloze, TOK, CONFIG, 64)
    assert made.answers == [[*encode(text), SPECIAL.eop] for text in cloze.answers]
    part_a = TOK.encode_blanks("the [MASK] reads")
    for row, answer in zip(made.rows, made.answers, strict=True):
        assert row.tokens.tolist() == [*part_a, SPECIAL.sop, *answer[:-1]]
        blank = part_a.index(SPECIAL.mask)
        assert row.positions[0, row.sep :].tolist() == [blank] * len(answer)
        assert row.positions[1, row.sep :].tolist() == [*range(1, len(answer) + 1)]


def test_candidates_of_one_token_are_scored_at_sop_alone():
    cloze = Cloze("a [MASK]", ("x", "y"), 0)
    made = choice(cloze, TOK, CONFIG, 32)
    assert made.answers == [encode("x"), encode("y")] == candidates(cloze, TOK, CONFIG)
    assert all(row.tokens[-1] == SPECIAL.sop for row in made.rows)


@pytest.mark.parametrize("text", ["Is it so?[MASK]. " + "the file " * 40,
                                  "the file " * 40 + "Is it so?[MASK]."])  # fmt: skip
def test_a_long_text_is_cut_where_the_blank_is_not(text):
    [row, _] = choice(Cloze(text, ("x", "y"), 0), TOK, CONFIG, 40).rows
    ids = row.tokens.tolist()
    assert len(ids) == 40
    assert ids[0] == SPECIAL.cls and ids[-2:] == [SPECIAL.eos, SPECIAL.sop]
    blank = ids.index(SPECIAL.mask)
    assert TOK.decode(ids[:blank], skip_special_tokens=True).endswith("Is it so?")


def test_a_causal_model_reads_a_choice_behind_its_text():
    tok, config = tiny_tokenizer(GLM4), tiny_config(GLM4)
    made = choice(Cloze("the file", (" reads", " writes"), 0), tok, config, 32)
    answer = tok.encode(" reads", add_special_tokens=False)
    assert made.answers[0] == answer
    assert made.rows[0].tokens.tolist() == [*tok.encode("the file"), *answer[:-1]]
    with pytest.raises(UserError, match="fills no blanks"):
        choice(Cloze("the [MASK]", (" a",), 0), tok, config, 32)


def test_a_labelled_text_is_read_whole_or_from_left_to_right():
    glm = labelled("the file reads", 2, TOK, CONFIG, 64)
    assert glm.row.sep == len(glm.row.tokens) and not glm.row.positions[1].any()
    cut = labelled("the file " * 40, 2, TOK, CONFIG, 16).row.tokens
    assert (len(cut), cut[0], cut[-1]) == (16, SPECIAL.cls, SPECIAL.eos)
    causal = labelled("the file", 0, tiny_tokenizer(GLM4), tiny_config(GLM4), 64)
    assert causal.row.sep == 0
    with pytest.raises(UserError, match="ChatGLM-6B has no classification head"):
        labelled("x", 0, tiny_tokenizer("chatglm-6b"), tiny_config("chatglm-6b"), 64)


def loader(**options):
    records = [(f"line {i}", LabelledText((f"the file {i}", "ab"[i % 2]))) for i in range(5)]
    options = {"batch_size": 4, "seq_len": 16, "seed": 1} | options
    return TaskLoader(records, TaskOptions("classify"), "ab", TOK, CONFIG, **options)


def test_a_batch_of_candidates_has_their_slots():
    records = [("1", Cloze("a [MASK]", (" file", " x"), 1)),
               ("2", Cloze("b [MASK]", (" file", " x", " y"), 0))]  # fmt: skip
    task = TaskOptions("choice", length_penalty=1.0)
    [batch] = TaskLoader(
        records, task, (), TOK, CONFIG, batch_size=2, seq_len=24, seed=0, endless=False
    )
    assert batch["tokens"].shape == (2, 3, 24) and batch["valid"].tolist() == [
        [True, True, False], [True] * 3
    ]  # fmt: skip
    n = len(encode(" file")) + 1
    np.testing.assert_allclose(batch["answer_weights"][0, 0, :n], 1 / n)
    slots = batch["slots"][0, 0, :n]
    assert batch["tokens"][0, 0, slots[0]] == SPECIAL.sop
    assert batch["answers"][0, 0, : n - 1].tolist() == batch["tokens"][0, 0, slots[1:]].tolist()


def test_every_epoch_holds_every_example_in_another_order():
    batches = [next(loader()) for _ in range(1)]
    stream = loader()
    batches = [next(stream) for _ in range(5)]
    seen = np.concatenate([b["tokens"][:, 0] for b in batches]).reshape(4, 5, 16)
    orders = [[row.tolist() for row in epoch] for epoch in seen]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({str(order) for order in orders}) > 1


def test_it_goes_on_from_its_state_and_splits_over_processes():
    stream = loader()
    next(stream)
    state, ahead = json.loads(json.dumps(stream.get_state())), next(stream)
    again, part = loader(), loader(rows=[1, 3])
    again.set_state(state)
    part.set_state(state)
    found, share = next(again), next(part)
    for name, x in ahead.items():
        np.testing.assert_array_equal(found[name], x)
        np.testing.assert_array_equal(share[name], x[[1, 3]])


def test_a_pass_that_ends_is_filled_with_what_weighs_nothing():
    weights = [batch["weight"].tolist() for batch in loader(endless=False)]
    assert weights == [[1, 1, 1, 1], [1, 0, 0, 0]]
