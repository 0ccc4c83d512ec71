"""The laws by which spans are chosen (spec 1.4 to 1.7)."""

import collections

import numpy as np

from glm_jax.data import spans

C, E, DOT = 100, 101, 50


def rng(seed=0):
    return np.random.default_rng(seed)


def test_span_lengths_follow_the_zero_truncated_poisson_law():
    law = spans.span_length_law()
    assert np.round(law[:6], 5).tolist() == [0.15719, 0.23578, 0.23578, 0.17684, 0.10610, 0.05305]
    assert round(float(law @ np.arange(1, 40)), 5) == 3.15719


def test_lengths_reach_the_budget_and_keep_what_overshoots():
    generator = rng()
    drawn = [spans.draw_lengths(30, generator) for _ in range(4000)]
    assert all(x.sum() >= 30 > x[:-1].sum() for x in drawn)
    first = np.bincount([x[0] for x in drawn], minlength=40)[1:7] / len(drawn)
    np.testing.assert_allclose(first, spans.span_length_law()[:6], atol=0.03)


def test_two_spans_in_eight_tokens_have_15_places_and_tight_ones_half_the_weight():
    generator, n = rng(), 20_000
    seen = collections.Counter(
        tuple(map(tuple, spans.place(np.array([2, 1]), (1, 9), generator).tolist()))
        for _ in range(n)
    )
    assert len(seen) == 15
    tight = [k for k in seen if k[1][0] == k[0][1] + 1]
    assert len(tight) == 5
    for place, count in seen.items():
        assert abs(count / n - (1 if place in tight else 2) / 25) < 0.012


def test_what_does_not_fit_has_no_place():
    assert spans.place(np.array([4, 4]), (0, 7), rng()) is None
    assert spans.place(np.array([8]), (0, 8), rng()).tolist() == [[0, 8]]


def test_neither_cls_nor_eos_nor_a_cut_text_s_last_token_may_go():
    tokens = np.array([C, 1, 2, E, C, 3, 4, E])
    assert spans.stretches(tokens, C, E) == [(1, 3), (5, 7)]
    assert spans.stretches(np.array([C, 1, 2, 3]), C, E) == [(1, 3)]
    assert spans.stretches(np.array([C, 1, E, C, 2, 3]), C, E) == [(1, 2), (4, 5)]


def test_packed_documents_share_the_spans():
    """Spec 1.9 F: C + 20 + E + C + 40 + E: at most int(.15 * 20) = 3 tokens from the first."""
    documents = [(1, 21), (23, 63)]
    for seed in range(200):
        found = spans.token_spans(64, documents, rng(seed))
        first = found[found[:, 0] < 21]
        assert (first[:, 1] - first[:, 0]).sum() <= 3
        assert (found[:, 1] - found[:, 0]).sum() >= int(0.15 * 64)
        assert all((a >= 1 and b <= 21) or (a >= 23 and b <= 63) for a, b in found)
        assert (found[1:, 0] > found[:-1, 1]).all()  # a visible token between neighbours


def test_of_equally_long_documents_the_first_takes_the_rest():
    """Room for int(.15 * 20) = 3 tokens in the other."""
    for seed in range(100):
        found = spans.token_spans(44, [(1, 21), (23, 43)], rng(seed))
        second = found[found[:, 0] >= 23]
        assert (second[:, 1] - second[:, 0]).sum() <= 3


def test_a_long_span_is_as_likely_first_as_last():
    """The length that reaches the budget is longer than most, so lengths are shuffled."""
    drawn = [spans.token_spans(62, [(1, 61)], rng(seed)) for seed in range(3000)]
    first, last = (np.mean([s[i, 1] - s[i, 0] for s in drawn]) for i in (0, -1))
    assert abs(first - last) < 0.15


def test_one_span_when_single():
    assert all(len(spans.token_spans(99, [(1, 98)], rng(s), single=True)) == 1 for s in range(50))


def test_sentences_close_with_a_stop_and_leave_out_cls_and_eos():
    text = np.array([C, 1, 2, DOT, 3, 4, DOT, E])
    assert spans.sentences(text, text == DOT, C, E).tolist() == [[1, 4], [4, 7]]
    cut = np.array([C, 1, DOT, 2, 3])
    assert spans.sentences(cut, cut == DOT, C, E).tolist() == [[1, 3], [3, 5]]
    unclosed = np.array([C, 1, DOT, 2, 3, E])  # golden quirk 26: nothing before an eos without end
    assert spans.sentences(unclosed, unclosed == DOT, C, E).tolist() == [[1, 3]]
    packed = np.array([C, 1, DOT, E, C, 2, 3, DOT, E])
    assert spans.sentences(packed, packed == DOT, C, E).tolist() == [[1, 3], [5, 8]]
    as_there = spans.sentences(packed, packed == DOT, C, E, with_cls=True)  # spec 1.6, quirk
    assert as_there.tolist() == [[1, 3], [4, 8]]


def test_sentences_are_taken_until_the_budget_is_reached():
    candidates = np.array([[1, 11], [11, 21], [21, 31], [31, 99]])
    for seed in range(50):
        taken = spans.sentence_spans(100, candidates, rng(seed))
        sizes = taken[:, 1] - taken[:, 0]
        assert sizes.sum() >= 15
        assert len(taken) <= 2
    assert spans.sentence_spans(100, candidates[:0], rng()) is None
