"""One text to one example: the mix, the knobs, and that all chance comes from the generator."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_jax.data import INFILLING_PRESETS, OBJECTIVES, Infilling, make_example
from glm_jax.presets import CHINESE, CHINESE_UNFIXED, GPT2

ENDS = np.zeros(60_000, bool)
ENDS[13] = True  # the full stop
TEXT = np.concatenate([[GPT2.cls], np.tile([*range(20, 30), 13], 12), [GPT2.eos]]).astype(np.int32)


def make(infilling, seed=0, text=TEXT, special=GPT2):
    key = np.array([7, seed], np.uint64)
    return make_example(
        text, special, infilling, np.random.Generator(np.random.Philox(key=key)), ENDS
    )


@pytest.mark.parametrize("name", INFILLING_PRESETS)
def test_every_released_mix_comes_out_in_its_shares(name):
    infilling, n = INFILLING_PRESETS[name], 1500
    drawn = np.bincount([make(infilling, seed)[1] for seed in range(n)], minlength=3) / n
    single = infilling.single_span_prob
    wanted = np.array([infilling.mask, infilling.smask, infilling.gmask]) * (1 - single)
    wanted[0] += single
    np.testing.assert_allclose(drawn, wanted, atol=0.04)


def test_the_same_seed_and_index_give_the_same_example():
    for index in range(20):
        a, b = (
            make(INFILLING_PRESETS["ds_block_10B"], index),
            make(INFILLING_PRESETS["ds_block_10B"], index),
        )
        assert a[1] == b[1]
        assert all(np.array_equal(x, y) for x, y in zip(a[0], b[0], strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_makes_every_example_of_one_kind(objective):
    infilling = INFILLING_PRESETS["ds_block_10B_longer"].only(objective)
    wanted = OBJECTIVES.index(objective)
    for seed in range(50):
        example, got = make(infilling, seed)
        assert got == wanted
        assert getattr(GPT2, objective) in example.tokens[: example.sep]


def test_fifteen_percent_of_tokens_are_blanked():
    for seed in range(50):
        example, _ = make(Infilling(), seed)
        pieces = (example.positions[1] == 1).sum()
        masked = example.loss_weights.sum() - pieces
        assert int(0.15 * len(TEXT)) <= masked <= int(0.15 * len(TEXT)) + 39
        assert len(example.tokens) == len(TEXT) + 2 * pieces


def test_generation_takes_at_least_the_minimum_ratio_and_ends_as_its_form_says():
    infilling = Infilling(0.0, 0.0, 1.0, gmask_min_ratio=0.25)
    endings = set()
    for seed in range(100):
        example, _ = make(infilling, seed)
        suffix = example.targets[-1] != GPT2.eop  # the infill form has eop, the suffix form not
        endings.add(bool(suffix))
        generated = len(example.tokens) - example.sep - (0 if suffix else 1)
        assert int(0.25 * len(TEXT)) <= generated <= len(TEXT) - 2
        if suffix:
            assert example.targets[-1] == GPT2.eos
    assert endings == {True, False}


def test_block_mask_replaces_inputs_of_part_b_but_no_target_and_no_sop():
    example, _ = make(Infilling(block_mask_prob=1.0))
    b = slice(example.sep, None)
    assert set(example.tokens[b].tolist()) == {GPT2.sop, GPT2.dblock}
    assert GPT2.dblock not in example.targets


def test_context_mask_takes_a_share_of_the_text_from_around_the_blanks():
    for seed in range(20):
        example, _ = make(Infilling(context_mask_ratio=0.1), seed)
        part_a = example.tokens[: example.sep]
        blanks, noise = (np.flatnonzero(part_a == i) for i in (GPT2.mask, GPT2.dblock))
        assert len(noise) == int(0.1 * len(TEXT))
        assert abs(noise[:, None] - blanks).min(axis=1).max() <= 3
        assert part_a[0] == GPT2.cls
        assert part_a[-1] == GPT2.eos
        assert GPT2.dblock not in example.targets


@pytest.mark.parametrize("objective", ["smask", "gmask"])
def test_noise_belongs_to_the_mask_objective(objective):
    noisy = Infilling(block_mask_prob=1.0, context_mask_ratio=0.5).only(objective)
    for seed in range(20):
        assert GPT2.dblock not in make(noisy, seed)[0].tokens


def test_generation_over_several_documents_takes_the_end():
    """Even where the last was cut down to its [CLS] and one token (spec 1.7)."""
    text = np.array([GPT2.cls, *range(20, 40), GPT2.eos, GPT2.cls, 20], np.int32)
    for seed in range(30):
        example, objective = make(Infilling(0.0, 0.0, 1.0, suffix_prob=0.0), seed, text)
        assert objective == 2
        assert GPT2.eop not in example.targets
        assert example.loss_weights[example.targets == GPT2.cls].sum() == 0


def test_random_position_shifts_all_alike_within_the_table():
    shifted = {
        int(make(Infilling(random_position=200), s)[0].positions[0].min()) for s in range(40)
    }
    assert len(shifted) > 5
    assert (
        max(int(make(Infilling(random_position=200), s)[0].positions[0].max()) for s in range(40))
        < 200
    )


def test_without_task_mask_every_objective_uses_the_plain_mask():
    example, _ = make(Infilling(0.0, 1.0, 0.0, task_mask=False))
    assert GPT2.mask in example.tokens
    assert GPT2.smask not in example.tokens


def test_gmask_may_share_its_id_with_eop():
    """GLM-10B-Chinese: [gMASK] and <|endofpiece|> are both 50007."""
    assert CHINESE_UNFIXED.gmask == CHINESE_UNFIXED.eop
    text = TEXT.copy()
    text[0], text[-1] = CHINESE.cls, CHINESE.eos
    for seed in range(30):
        example, objective = make(Infilling(0.0, 0.0, 1.0), seed, text, CHINESE_UNFIXED)
        assert objective == 2
        assert example.tokens[: example.sep].tolist().count(50007) == 1


def test_ablations_keep_the_order_or_do_not_count_blocks():
    example, _ = make(Infilling(shuffle=False))
    assert (np.diff(example.positions[0, example.sep :]) >= 0).all()
    flat, _ = make(Infilling(block_positions=False))
    assert set(flat.positions[1, flat.sep :].tolist()) == {1}


def unmasked(example):
    """The text again: every blank of Part A filled with the piece at its position."""
    part_a, b = example.tokens[: example.sep], slice(example.sep, None)
    pieces = collections.defaultdict(list)
    for at, target in zip(example.positions[0, b], example.targets[b], strict=True):
        pieces[int(at)].append(int(target))
    text = []
    for at, token in enumerate(part_a):
        piece = pieces.get(at, [int(token)])
        text += piece[:-1] if piece[-1] == GPT2.eop else piece
    return text, len(pieces)


@given(
    st.sampled_from([name for name in INFILLING_PRESETS if name != "glm-130b"]),
    st.lists(st.lists(st.integers(10, 40), min_size=1, max_size=60), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_filling_the_blanks_gives_back_the_sample(name, documents, cut, seed):
    """Whatever the mix; each masked token is scored once, and one eop for each span."""
    text = [t for d in documents for t in (GPT2.cls, *d, GPT2.eos)]
    text = np.array(text[:-1] if cut else text, np.int32)
    made = make(INFILLING_PRESETS[name], seed, text)
    if made is None:  # nothing to blank, or no place for it
        return
    example, objective = made
    filled, blanks = unmasked(example)
    assert filled == text.tolist()
    part_b = example.targets[example.sep :]
    assert np.isin(part_b, GPT2.eop).sum() in ({blanks} if objective < 2 else {0, 1})
    scored = part_b != GPT2.cls
    assert example.loss_weights[example.sep :].tolist() == scored.tolist()
    assert not example.loss_weights[: example.sep].any()


def test_a_text_without_a_sentence_is_blanked_by_tokens():
    text = np.array([GPT2.cls, *range(20, 60), GPT2.eos], np.int32)
    example, objective = make(Infilling(0.0, 1.0, 0.0), text=text)
    assert objective == 0
    assert GPT2.mask in example.tokens


def test_a_text_too_short_to_blank_is_dropped():
    assert make(Infilling(), text=np.array([GPT2.cls, 20, GPT2.eos], np.int32)) is None
    assert make(Infilling(), text=np.array([GPT2.cls, 20, 21, GPT2.eos], np.int32)) is None


def test_bad_knobs_and_vocabularies_are_named():
    with pytest.raises(ValueError, match="must sum to 1"):
        Infilling(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"mask_ratio is 1\.5"):
        Infilling(mask_ratio=1.5)
    with pytest.raises(ValueError, match="no gmask token"):
        make(Infilling(0, 0, 1), special=dataclasses.replace(GPT2, gmask=None))
