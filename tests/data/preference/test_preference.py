"""Pairs and questions of users' files: forms, rows, order, and what is left out."""

import json

import numpy as np
import pytest

from glm_jax.chat import Message, render
from glm_jax.data.preference import (
    IndexBatches,
    Pairs,
    PreferenceData,
    Questions,
    answer_rows,
    answer_to,
    some_batches,
)
from glm_jax.data.preference.lengths import balanced_pairs
from glm_jax.errors import UserError
from tests.chat.models import tiny_config
from tests.data.finetune.files import FAMILIES, write
from tests.text.every import tiny_tokenizer

NAME = "glm-4-9b"
PAIR = {"prompt": "closes?", "chosen": "the file opens", "rejected": "the socket"}


def pairs(path, *entries, seq_len=64, split="train", **options):
    options = {"files": (write(path, *entries),), "heldout_percent": 0.0} | options
    data = PreferenceData(**options)
    own = tiny_tokenizer(NAME), tiny_config(NAME), NAME
    return Pairs(data, *own, split=split, seq_len=seq_len)


def questions(path, *entries, most=32):
    data = PreferenceData((write(path, *entries),), heldout_percent=0.0)
    return Questions(data, tiny_tokenizer(NAME), NAME, split="train", most=most)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_is_what_inference_gives_the_model_and_the_answer_what_it_writes(name):
    tokenizer, config = tiny_tokenizer(name), tiny_config(name)
    messages = [Message("user", "a"), Message("assistant", "reads"), Message("user", "closes?")]
    found = answer_to(messages, "the file opens", tokenizer, name)
    assert found.prompt == render(messages, tokenizer, format=name)
    ends = {tokenizer.special.eos, tokenizer.special.eop, tokenizer.special_ids.get("<|user|>")}
    assert found.answer[-1] in ends
    assert "the file opens" in tokenizer.decode(found.answer[:-1])

    rows = answer_rows([found], config, 64)
    n, p = len(found), len(found.prompt)
    assert rows["lengths"].tolist() == [n]
    assert rows["tokens"][0, :n].tolist() == [*found.prompt, *found.answer]
    learned = rows["loss_weights"][0] > 0
    assert np.flatnonzero(learned).tolist() == list(range(p - 1, n - 1))
    assert rows["targets"][0, learned].tolist() == found.answer
    assert rows["k_end"][0, n:].tolist() == [0] * (64 - n)


def test_pairs_in_all_forms_are_the_same(tmp_path):
    user = {"role": "user", "content": "closes?"}
    said = lambda text: [{"role": "assistant", "content": text}]
    earlier = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    opened = pairs(
        tmp_path / "a.jsonl",
        PAIR,
        {**PAIR, "prompt": [user]},
        {"messages": [user], "chosen": said("the file opens"), "rejected": said("the socket")},
        {**PAIR, "history": [["a", "b"]]},
        {**PAIR, "prompt": [*earlier, user]},
    )
    assert opened[0] == opened[1] == opened[2] != opened[3] == opened[4]
    batch = opened.rows([0, 3])
    assert batch["tokens"].shape == (2, 2, 64)
    assert batch["positions"].shape == (2, 2, 2, 64)
    chosen = opened[3].chosen
    assert batch["tokens"][1, 0, : len(chosen)].tolist() == [*chosen.prompt, *chosen.answer]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected'; its fields: prompt, chosen"),
        ({**PAIR, "chosen": 3}, "field 'chosen' is a number, not a string"),
        ({**PAIR, "chosen": " "}, "field 'chosen' is empty"),
        ({**PAIR, "chosen": "the socket"}, "'chosen' and 'rejected' are the same text"),
        ({**PAIR, "prompt": []}, "field 'prompt' is an empty list"),
        ({**PAIR, "prompt": [{"role": "assistant", "content": "a"}]}, "ends with the assistant"),
        ({**PAIR, "chosen": [{"role": "user", "content": "a"}]}, "'chosen' is a list of 1"),
        ({**PAIR, "prompt": [{"role": "judge", "content": "a"}]}, r"prompt\[0\]: role 'judge'"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_pair_is_named_by_file_line_and_field(tmp_path, entry, message):
    with pytest.raises(UserError, match=message) as error:
        pairs(tmp_path / "a.jsonl", PAIR, entry)
    assert str(error.value).startswith(f"{tmp_path / 'a.jsonl'}, line 2: ")
    assert "\n" not in str(error.value)


def test_questions_and_their_answers(tmp_path):
    opened = questions(
        tmp_path / "q.jsonl", {"prompt": "a?", "answer": 7}, {"prompt": "b?"}, {"prompt": "c?"}
    )
    assert [prompt.answer for prompt in opened] == ["7", None, None]
    assert opened[0].text == "a?"
    assert opened[0].ids == render([Message("user", "a?")], tiny_tokenizer(NAME), format=NAME)
    with pytest.raises(UserError, match=r"line 1: field 'answer' is a list, no text or number"):
        questions(tmp_path / "r.jsonl", {"prompt": "a?", "answer": [7]})


def test_what_is_too_long_is_left_out_or_an_error(tmp_path, caplog):
    long = {**PAIR, "chosen": "the file opens " * 30}
    opened = pairs(tmp_path / "a.jsonl", PAIR, long, {**PAIR, "prompt": "b"})
    assert len(opened) == 2
    assert "left out 1 of 3 examples as too long" in caplog.text
    with pytest.raises(UserError, match=r"a.jsonl, line 2: \d+ ids do not fit in 64"):
        pairs(tmp_path / "a.jsonl", PAIR, long, too_long="raise")
    with pytest.raises(UserError, match=r"line 1: .* do not fit"):
        pairs(tmp_path / "a.jsonl", long)


def test_pairs_without_length_bias():
    # By differences of length: 1 | 2, 3 | 4..7; one bucket has a surplus of longer answers.
    differences = np.array([1, 1, -1, 2, -3, 0, 5, 6, 0, 9])
    kept = balanced_pairs(differences)
    assert kept.tolist() == [0, 2, 3, 4, 5, 8]
    assert (differences[kept] > 0).sum() == (differences[kept] < 0).sum()


def test_debias_length_leaves_pairs_out_of_what_is_trained_on(tmp_path):
    longer = [{**PAIR, "prompt": f"closes {i}?"} for i in range(6)]
    shorter = [{**longer[0], "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}]
    assert len(pairs(tmp_path / "a.jsonl", *longer, *shorter, debias_length=True)) == 2
    with pytest.raises(UserError, match="no pair is left by debias_length"):
        pairs(tmp_path / "a.jsonl", *longer, debias_length=True)


def batches(rows=range(4), repeat=1, seed=1):
    make = lambda indices: {"index": np.array(indices)}
    return IndexBatches(make, 10, batch_size=4, rows=rows, seed=seed, repeat=repeat)


def test_every_pass_sees_every_example_once_in_an_order_of_its_own():
    stream = batches()
    seen = np.concatenate([next(stream)["index"] for _ in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_batches_go_on_at_a_state_and_do_not_depend_on_the_number_of_processes():
    whole = batches()
    first = [next(whole)["index"] for _ in range(3)]
    other = batches()
    other.set_state(json.loads(json.dumps(batches().get_state() | {"batch": 2})))
    np.testing.assert_array_equal(next(other)["index"], first[2])
    halves = [next(batches(rows))["index"] for rows in (range(2), range(2, 4))]
    np.testing.assert_array_equal(np.concatenate(halves), first[0])


def test_each_example_may_have_several_rows():
    stream = batches(repeat=2)
    a, b = next(stream)["index"], next(batches())["index"]
    np.testing.assert_array_equal(a, np.repeat(b[:2], 2))


def test_some_batches_fill_up_the_last():
    make = lambda indices: {"index": np.array(indices)}
    first, second = some_batches(make, range(5), 4, range(4))
    assert first["present"].tolist() == [1, 1, 1, 1]
    assert second["present"].tolist() == [1, 0, 0, 0]
    assert second["index"][0] == 4
