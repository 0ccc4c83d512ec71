"""Batches of fine-tuning data: what is in them, the same however they are made."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_jax.chat import Message, render_training
from glm_jax.data import FinetuneData
from glm_jax.data.finetune.mixing import Mixed
from glm_jax.errors import UserError
from glm_jax.text.layout import lay_out
from tests.chat.models import tiny_config
from tests.data.finetune.files import FAMILIES, open_loader, pieces, take, talk, write
from tests.data.test_pipeline import assert_same, joined, share
from tests.text.every import released_tokenizer, tiny_tokenizer


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    return write(tmp_path_factory.mktemp("talks") / "talks.jsonl", *map(talk, range(30)))


def options(*files, **fields):
    return FinetuneData(files=files, heldout_percent=0, **fields)


def hello(name):
    """The batch of the spec's worked example, alone in its row."""
    from glm_jax.config import preset
    from glm_jax.data.finetune.examples import lay_out_text

    turns = [Message("user", "你好"), Message("assistant", "你好")]
    [text] = render_training(turns, released_tokenizer(name))
    return lay_out_text(text, preset(name))


def test_the_specs_row_of_chatglm_6b():
    row = hello("chatglm-6b")
    assert row.tokens.tolist() == [5, 74874, 130001, 130004, 5, 74874]
    assert row.targets.tolist() == [74874, 130001, 130004, 5, 74874, 130005]
    assert row.loss_weights.tolist() == [0, 0, 1, 1, 1, 1]
    assert row.positions.tolist() == [[0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]]
    assert row.k_end.tolist() == [3, 3, 3, 4, 5, 6]


def test_the_specs_row_of_chatglm3_6b():
    row = hello("chatglm3-6b")
    assert row.tokens.tolist() == [64790, 64792, 64795, 30910, 13, 36474, 54591,
                                   64796, 30910, 13, 36474, 54591]  # fmt: skip
    assert (row.targets * row.loss_weights).astype(int).tolist() == [0] * 7 + [
        30910, 13, 36474, 54591, 2
    ]  # fmt: skip
    assert row.positions[0].tolist() == list(range(12))
    assert row.k_end.tolist() == list(range(1, 13))


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_examples_are_whole_and_see_themselves_alone(name, talks):
    tokenizer, config = tiny_tokenizer(name), tiny_config(name)
    expected = {}
    for i in range(30):
        entry = talk(i)
        turns = [m for q, a in [*entry["history"], [entry["prompt"], entry["response"]]]
                 for m in (Message("user", q), Message("assistant", a))]  # fmt: skip
        for text in render_training(turns, tokenizer):
            if len(text.ids) <= 97:
                expected[tuple(text.ids[:-1])] = text
    seen = set()
    for batch in take(name, options(talks, too_long="skip"), num_epochs=1, split="train"):
        for piece in pieces(batch):
            ids = tuple(piece["tokens"].tolist())
            text, row = expected[ids], lay_out(ids, config)
            seen.add(ids)
            assert piece["targets"].tolist() == text.ids[1:]
            assert piece["loss_weights"].tolist() == text.learned[1:]
            np.testing.assert_array_equal(piece["positions"], row.positions)
            own = np.maximum(np.arange(1, len(ids) + 1), row.sep)
            np.testing.assert_array_equal(piece["k_end"] - piece["start"], own)
    assert seen == set(expected)


def test_without_packing_a_row_holds_one_example(talks):
    batches = take("chatglm3-6b", options(talks, packing=False), num_epochs=1)
    batches += take("chatglm3-6b", options(talks, packing=False), 2)
    assert all(not batch["k_start"].any() for batch in batches)
    assert len(batches) == 8 + 2


@pytest.mark.parametrize("packing", [True, False])
def test_the_same_batches_on_any_number_of_processes(talks, packing):
    o = options(talks, packing=packing)
    for epochs, count in ((None, 4), (2, None)):
        whole = take("glm-4-9b", o, count, num_epochs=epochs)
        parts = [take("glm-4-9b", o, count, num_epochs=epochs, rows=share(i, 2)) for i in range(2)]
        assert_same(joined(parts), whole)


def test_it_goes_on_from_its_state(talks, tmp_path):
    general = write(
        tmp_path / "general.jsonl", *({"text": f"the stream {i} " * 20} for i in range(9))
    )
    o = options(talks, replay=(general,), replay_ratio=0.3)
    o = FinetuneData(**{**vars(o), "heldout_percent": 20})
    with open_loader("chatglm-6b", o) as loader:
        for _ in range(3):
            next(loader)
        state = json.loads(json.dumps(loader.get_state()))
        ahead = [next(loader) for _ in range(4)]
    with open_loader("chatglm-6b", o) as loader:
        loader.set_state(state)
        assert_same([next(loader) for _ in range(4)], ahead)


def test_every_conversation_counts_the_same_when_balanced(talks):
    [batch] = take("chatglm3-6b", options(talks, balance=True), 1)
    sums = [piece["loss_weights"].sum() for piece in pieces(batch)]
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
    [batch] = take("chatglm-6b", options(talks, balance=True), 1, batch_size=1, seq_len=512)
    total = sum(piece["loss_weights"].sum() for piece in pieces(batch))
    # Every record of 0 to 2 earlier rounds gives as many examples more, which share its weight.
    assert any(piece["loss_weights"].sum() < 0.9 for piece in pieces(batch))
    assert total < len(pieces(batch))


def test_held_out_examples_are_not_trained_on(talks):
    o = FinetuneData(files=(talks,), heldout_percent=20, turns="last")
    sides = [take("glm-4-9b", o, split=split, num_epochs=1) for split in ("train", "heldout")]
    ids = [{tuple(p["tokens"].tolist()) for b in side for p in pieces(b)} for side in sides]
    assert [len(side) for side in ids] == [24, 6]
    assert not ids[0] & ids[1]


def test_general_data_is_mixed_in_by_its_share(talks, tmp_path):
    general = ({"prompt": f"general {i}", "response": "x"} for i in range(40))
    path = write(tmp_path / "general.jsonl", *general)
    o = FinetuneData(files=(talks,), heldout_percent=10, replay=(path,), replay_ratio=0.25)
    parts = [p["objective"][0] for b in take("glm-4-9b", o, 12) for p in pieces(b)]
    assert 0.2 < np.mean(parts) < 0.3
    whole = [p["objective"][0] for b in take("glm-4-9b", o, num_epochs=1) for p in pieces(b)]
    assert [whole.count(part) for part in (0, 1)] == [27, 8]
    probe = take("glm-4-9b", o, split="general", num_epochs=1)
    assert [p["objective"][0] for b in probe for p in pieces(b)] == [1] * 4


@pytest.mark.parametrize("name", ["chatglm2-6b", "chatglm-6b"])
def test_plain_text_is_learned_whole(name, tmp_path):
    words = " ".join(f"the file {i} reads." for i in range(60))
    path = write(tmp_path / "text.jsonl", {"text": words}, {"text": "a buffer " * 40})
    batches = take(name, options(path), num_epochs=1)
    tokenizer = tiny_tokenizer(name)
    wanted = np.concatenate(
        [p["targets"][p["loss_weights"] > 0] for b in batches for p in pieces(b)]
    )
    if name == "chatglm2-6b":
        ids = [[*tokenizer.encode(t, add_special_tokens=False), tokenizer.special.eos]
               for t in (words, "a buffer " * 40)]  # fmt: skip
        assert sorted(wanted.tolist()) == sorted(ids[0] + ids[1])
    else:
        assert tokenizer.special.eop in wanted
        masks = [p["tokens"] for b in batches for p in pieces(b)]
        blanks = (tokenizer.special.mask, tokenizer.special.gmask)
        assert all(np.isin(blanks, tokens).any() for tokens in masks)


GLM = "glm-10b"


def test_a_pair_without_a_chat_format_fills_a_blank(tmp_path):
    path = write(tmp_path / "pairs.jsonl", {"source": "the file reads", "target": "a buffer"})
    tokenizer = tiny_tokenizer(GLM)
    special, encode = tokenizer.special, tokenizer.encode
    [batch] = take(GLM, options(path), num_epochs=1)
    [piece] = pieces(batch)
    source = encode("the file reads", add_special_tokens=False)
    target = encode("a buffer", add_special_tokens=False)
    n, m = len(source), len(target)
    # [CLS] the file reads [sMASK] <eos> | sop a buffer, the targets one id ahead of the tokens
    part_a = [special.cls, *source, special.smask, special.eos]
    assert piece["tokens"].tolist() == [*part_a, special.sop, *target]
    assert piece["targets"][n + 3 :].tolist() == [*target, special.eop]
    assert piece["loss_weights"].tolist() == [0] * (n + 3) + [1] * (m + 1)
    assert piece["positions"].tolist() == [
        [*range(n + 3), *[n + 1] * (m + 1)], [0] * (n + 3) + [*range(1, m + 2)]
    ]  # fmt: skip
    assert piece["k_end"].tolist() == [n + 3] * (n + 3) + [*range(n + 4, n + m + 5)]


def test_where_the_blank_of_a_pair_is(tmp_path):
    encode, special = tiny_tokenizer(GLM).encode_blanks, tiny_tokenizer(GLM).special
    pair = {"source": "the file", "target": "reads"}
    own = {"source": "the [MASK] reads", "target": " file"}
    path = write(tmp_path / "pairs.jsonl", pair, own)
    found = [
        tuple(p["tokens"][: p["tokens"].tolist().index(special.sop)].tolist())
        for b in take(GLM, options(path, blank="[gMASK] Content: {}"), num_epochs=1)
        for p in pieces(b)
    ]
    assert set(found) == {tuple(encode("[gMASK] Content: the file")),
                          tuple(encode("the [MASK] reads"))}  # fmt: skip
    with pytest.raises(UserError, match=r"line 1: --blank '\{\} !' has no blank"):
        take(GLM, options(path, blank="{} !"), num_epochs=1)


def test_pairs_that_are_too_long_keep_their_blank(tmp_path):
    path = write(tmp_path / "pairs.jsonl", {"source": "the file " * 60, "target": "reads " * 60})
    special = tiny_tokenizer(GLM).special
    [batch] = take(GLM, options(path, max_source_length=40, max_target_length=20), num_epochs=1)
    [piece] = pieces(batch)
    assert 38 <= piece["tokens"].tolist().index(special.sop) + 1 <= 40
    assert special.smask in piece["tokens"] and piece["targets"][-1] == special.eop
    assert piece["loss_weights"].sum() == 20
    [batch] = take(GLM, options(path), num_epochs=1)
    assert len(pieces(batch)[0]["tokens"]) >= 94
    with pytest.raises(UserError, match="line 1: source or target are too long"):
        take(GLM, options(path, too_long="raise"), num_epochs=1)


@given(st.integers(1, 5), st.floats(0.01, 0.99), st.integers(0, 300))
def test_mixing_keeps_the_order_of_each_side(streams, ratio, count):
    mixed = Mixed([*range(10**5)], range(-(10**6), 0), ratio, streams)
    for r in range(streams):
        found = [mixed[k * streams + r] for k in range(count)]
        task, general = [x for x in found if x >= 0], [x + 10**6 for x in found if x < 0]
        assert task == [*range(r, r + streams * len(task), streams)]
        assert general == [*range(r, r + streams * len(general), streams)]
        assert abs(len(general) - ratio * count) <= 1 + count / 10**4


LONG = {"prompt": "the file " * 30, "response": "reads a buffer " * 30}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_too_long_is_cut_left_out_or_refused(name, tmp_path):
    path = write(tmp_path / "long.jsonl", LONG, talk(0))
    lengths = [len(p["tokens"]) for b in take(name, options(path), num_epochs=1) for p in pieces(b)]
    if name in ("chatglm-6b", "chatglm2-6b"):
        assert max(lengths) == 96
    kept = take(name, options(path, too_long="skip"), num_epochs=1)
    assert len([p for b in kept for p in pieces(b)]) == 1
    with pytest.raises(UserError, match=r"long.jsonl, line 1: \d+ tokens are too long: \d+ are"):
        take(name, options(path, too_long="raise"), num_epochs=1)


def test_the_releases_cuts(tmp_path):
    path = write(tmp_path / "long.jsonl", LONG)
    o = options(path, max_source_length=20, max_target_length=12)
    for name, slots in (("chatglm-6b", 31), ("chatglm2-6b", 32)):
        [batch] = take(name, o, num_epochs=1)
        tokenizer = tiny_tokenizer(name)
        [piece] = pieces(batch)
        special = tokenizer.special
        assert len(piece["tokens"]) == slots
        end = special.eop if name == "chatglm-6b" else special.eos
        assert piece["targets"][-1] == end
        assert piece["loss_weights"].tolist() == [0] * 19 + [1] * (slots - 19)
        if name == "chatglm-6b":
            assert piece["tokens"][19:21].tolist() == [special.gmask, special.sop]
    for name in ("chatglm3-6b", "glm-4-9b"):
        assert take(name, o, num_epochs=1) == []  # the answer lies beyond the cut


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
def test_nothing_is_lost_or_doubled(tmp_path_factory, lengths, seed):
    entries = [
        {"prompt": f"{i} " + "x" * a, "response": "y" * b} for i, (a, b) in enumerate(lengths)
    ]
    path = write(tmp_path_factory.mktemp("any") / "a.jsonl", *entries)
    batches = take("glm-4-9b", options(path), num_epochs=1, seed=seed)
    tokenizer = tiny_tokenizer("glm-4-9b")
    found = sorted(tuple(p["tokens"].tolist()) for b in batches for p in pieces(b))
    made = []
    for entry in entries:
        turns = [Message("user", entry["prompt"]), Message("assistant", entry["response"])]
        made += [tuple(text.ids[:-1]) for text in render_training(turns, tokenizer)]
    assert found == sorted(made)
