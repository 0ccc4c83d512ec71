"""The spec's worked examples (section 1.9), digit for digit.

C=[CLS] E=eos S=sop P=eop, M=[MASK] G=[gMASK] N=[sMASK].
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_jax import data

C, E, S, P, M, G, N = range(100, 107)
DOT = 50
IDS = {"mask_id": M, "sop_id": S, "eop_id": P}


def check(example, tokens, targets, loss, pos, block, sep):
    assert example.tokens.tolist() == tokens
    assert example.targets.tolist() == targets
    assert example.loss_weights.tolist() == loss
    assert example.positions.tolist() == [pos, block]
    assert example.sep == sep


def test_a_two_spans_shuffled():
    text = [C, 1, 2, 3, 4, 5, 6, 7, 8, E]
    example = data.layout_spans(text, [(2, 4), (6, 7)], [1, 0], **IDS)
    a = [C, 1, M, 4, 5, M, 7, 8, E]
    check(
        example,
        tokens=[*a, S, 6, S, 2, 3],
        targets=[*a, 6, P, 2, 3, P],
        loss=[0] * 9 + [1] * 5,
        pos=[0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 5, 2, 2, 2],
        block=[0] * 9 + [1, 2, 1, 2, 3],
        sep=9,
    )
    assert example.k_end.tolist() == [9] * 9 + [10, 11, 12, 13, 14]


def test_b_generation_suffix():
    text = [C, 1, 2, 3, 4, 5, 6, E]
    check(
        data.layout_suffix(text, 5, gmask_id=G, sop_id=S),
        tokens=[C, 1, 2, G, S, 3, 4, 5, 6],
        targets=[C, 1, 2, G, 3, 4, 5, 6, E],
        loss=[0] * 4 + [1] * 5,
        pos=[0, 1, 2, 3, 3, 3, 3, 3, 3],
        block=[0, 0, 0, 0, 1, 2, 3, 4, 5],
        sep=4,
    )
    check(
        data.layout_suffix(text, 3, gmask_id=G, sop_id=S),
        tokens=[C, 1, 2, 3, 4, G, S, 5, 6],
        targets=[C, 1, 2, 3, 4, G, 5, 6, E],
        loss=[0] * 6 + [1] * 3,
        pos=[0, 1, 2, 3, 4, 5, 5, 5, 5],
        block=[0] * 6 + [1, 2, 3],
        sep=6,
    )


def test_c_generation_infill():
    text = [C, 1, 2, 3, 4, 5, 6, E]
    check(
        data.layout_spans(text, [(1, 5)], [0], mask_id=G, sop_id=S, eop_id=P),
        tokens=[C, G, 5, 6, E, S, 1, 2, 3, 4],
        targets=[C, G, 5, 6, E, 1, 2, 3, 4, P],
        loss=[0] * 5 + [1] * 5,
        pos=[0, 1, 2, 3, 4, 1, 1, 1, 1, 1],
        block=[0] * 5 + [1, 2, 3, 4, 5],
        sep=5,
    )


def test_d_sentence():
    text = [C, 1, 2, DOT, 3, 4, DOT, E]
    check(
        data.layout_spans(text, [(4, 7)], [0], mask_id=N, sop_id=S, eop_id=P),
        tokens=[C, 1, 2, DOT, N, E, S, 3, 4, DOT],
        targets=[C, 1, 2, DOT, N, E, 3, 4, DOT, P],
        loss=[0] * 6 + [1] * 4,
        pos=[0, 1, 2, 3, 4, 5, 4, 4, 4, 4],
        block=[0] * 6 + [1, 2, 3, 4],
        sep=6,
    )


def test_e_two_samples_padded():
    """[C N x2 . E S x1 .] and [C N E S x1 x2 . 0]; padding is what Packer's rows begin with."""
    first = data.layout_spans([C, 1, DOT, 2, DOT, E], [(1, 3)], [0], mask_id=N, sop_id=S, eop_id=P)
    second = data.layout_spans([C, 1, 2, DOT, E], [(1, 4)], [0], mask_id=N, sop_id=S, eop_id=P)
    rows = []
    for example in (first, second):
        packer = data.Packer(8)
        rows += packer.add(example, 1) or packer.flush()
    assert rows[0]["tokens"].tolist() == [C, N, 2, DOT, E, S, 1, DOT]
    assert rows[1]["tokens"].tolist() == [C, N, E, S, 1, 2, DOT, 0]
    assert rows[0]["targets"].tolist() == [C, N, 2, DOT, E, 1, DOT, P]
    assert rows[1]["targets"].tolist() == [C, N, E, 1, 2, DOT, P, 0]
    assert rows[1]["loss_weights"].tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    assert rows[0]["positions"].tolist() == [[0, 1, 2, 3, 4, 1, 1, 1], [0, 0, 0, 0, 0, 1, 2, 3]]
    assert rows[1]["positions"].tolist() == [[0, 1, 2, 1, 1, 1, 1, 0], [0, 0, 0, 1, 2, 3, 4, 0]]
    assert (first.sep, second.sep) == (5, 3)


CLOZE = {"cls_id": C, "eos_id": E, "sop_id": S, "mask_ids": (M, N, G)}


def test_h_fine_tuning_sample():
    check(
        data.layout_cloze([1, M, 2], [7, 8, P], max_len=14, **CLOZE),
        tokens=[C, 1, M, 2, E, S, 7, 8, *[E] * 6],
        targets=[0] * 5 + [7, 8, P] + [0] * 6,
        loss=[0] * 5 + [1] * 3 + [0] * 6,
        pos=[0, 1, 2, 3, 4, 2, 2, 2, *[0] * 6],
        block=[0] * 5 + [1, 2, 3] + [0] * 6,
        sep=5,
    )
    check(
        data.layout_cloze([1, M, 2], None, max_len=8, **CLOZE),
        tokens=[C, 1, M, 2, E, S, E, E],
        targets=[0] * 8,
        loss=[0] * 5 + [1, 0, 0],
        pos=[0, 1, 2, 3, 4, 2, 0, 0],
        block=[0] * 5 + [1, 0, 0],
        sep=5,
    )


def test_h_a_long_input_keeps_its_head_and_the_last_mask_counts():
    cut = data.layout_cloze([M, 2, M, 3, 4, 5, 6, 7], None, max_len=20, **CLOZE)
    assert cut.positions[0, cut.sep] == 3
    with pytest.raises(ValueError, match="8 tokens do not fit max_len 7"):
        data.layout_cloze([M, 2, M, 3, 4, 5, 6, 7], None, max_len=7, **CLOZE)


def test_i_unidirectional_scoring():
    check(
        data.layout_unidirectional(
            [1, 2, 3], [7, 8], max_len=10, cls_id=C, mask_id=M, sop_id=S, eos_id=E
        ),
        tokens=[C, M, S, 1, 2, 3, 7, E, E, E],
        targets=[0, 0, 0, 0, 0, 7, 8, 0, 0, 0],
        loss=[0, 0, 0, 0, 0, 1, 1, 0, 0, 0],
        pos=[0, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        block=[0, 0, 1, 2, 3, 4, 5, 0, 0, 0],
        sep=2,
    )


def test_j_seq2seq():
    check(
        data.layout_seq2seq(
            [C, M, 1],
            [7, 8],
            source_len=5,
            target_len=4,
            pad_id=E,
            sop_id=S,
            eop_id=P,
            mask_ids=(M,),
        ),
        tokens=[C, M, 1, E, E, S, 7, 8, P],
        targets=[0, 0, 0, 0, 0, 7, 8, P, E],
        loss=[0] * 5 + [1, 1, 1, 0],
        pos=[0, 1, 2, 3, 4, 1, 1, 1, 1],
        block=[0] * 5 + [1, 2, 3, 4],
        sep=5,
    )


def test_glm_130b_positions():
    """`x1 x2 M x3 x4 S y1 y2` keeps the mask's position; `x1 x2 x3 G S y1 y2` runs on."""
    kept = data.layout_spans([1, 2, 7, 8, 3, 4], [(2, 4)], [0], **IDS)
    assert kept.positions[0].tolist() == [0, 1, 2, 3, 4, 2, 2, 2]
    runs = data.layout_suffix([1, 2, 3, 7, 8, 9], 3, gmask_id=G, sop_id=S, running_positions=True)
    assert runs.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("spans", "order", "message"),
    [
        ([(2, 2)], [0], "not be empty"),
        ([(4, 3)], [0], "start before end"),
        ([(1, 3), (2, 4)], [0, 1], "must not overlap"),
        ([(-1, 2)], [0], "leave the text of 6 tokens"),
        ([(1, 99)], [0], "leave the text of 6 tokens"),
        ([(1, 2)], [1], r"order \[1\] is not a permutation of 1 spans"),
        ([(1, 2)], [], "is not a permutation"),
    ],
)
def test_bad_spans_are_named(spans, order, message):
    with pytest.raises(ValueError, match=message):
        data.layout_spans([C, 1, 2, 3, 4, E], spans, order, **IDS)


def test_spans_may_be_named_in_any_order():
    text = [C, 1, 2, 3, 4, 5, 6, 7, 8, E]
    one = data.layout_spans(text, [(2, 4), (6, 7)], [1, 0], **IDS)
    other = data.layout_spans(text, [(6, 7), (2, 4)], [0, 1], **IDS)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_spans_may_touch_and_each_keeps_its_mask():
    example = data.layout_spans([C, 1, 2, 3, E], [(1, 3), (3, 4)], [0, 1], **IDS)
    assert example.tokens.tolist() == [C, M, M, E, S, 1, 2, S, 3]
    assert example.positions[0].tolist() == [0, 1, 2, 3, 1, 1, 1, 2, 2]


def test_no_span_covers_the_document_s_end():
    with pytest.raises(ValueError, match=rf"spans \[\[2, 4\]\] cover eos {E}; .* before it"):
        data.layout_spans([C, 1, 2, E], [(2, 4)], [0], eos_id=E, **IDS)


def test_a_suffix_is_scored_by_the_text_s_own_loss_mask():
    """A packed document's [CLS] is read but not predicted."""
    text, mask = [C, 1, E, C, 2, E], [0, 1, 1, 0, 1, 1]
    example = data.layout_suffix(text, 4, gmask_id=G, sop_id=S, loss_mask=mask)
    assert example.targets.tolist() == [C, 1, G, E, C, 2, E]
    assert example.loss_weights.tolist() == [0, 0, 0, 1, 0, 1, 1]
    with pytest.raises(ValueError, match="loss_mask has 2 entries; one for each of 6"):
        data.layout_suffix(text, 4, gmask_id=G, sop_id=S, loss_mask=[1, 1])


def test_bad_lengths_are_named():
    with pytest.raises(ValueError, match="gen_length is 6; of 6 tokens 1 to 5"):
        data.layout_suffix([C, 1, 2, 3, 4, E], 6, gmask_id=G, sop_id=S)
    with pytest.raises(ValueError, match="no blank in"):
        data.layout_cloze([1, 2], None, max_len=9, **CLOZE)
    with pytest.raises(ValueError, match="do not fit max_len 6"):
        data.layout_cloze([1, M, 2], [7, 8, P], max_len=6, **CLOZE)


@given(st.data())
def test_filling_the_blanks_gives_back_the_text(draw):
    """Scored slots: every masked token and one eop per span."""
    n = draw.draw(st.integers(2, 40))
    cuts = sorted(draw.draw(st.sets(st.integers(0, n), min_size=0, max_size=8)))
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    order = draw.draw(st.permutations(range(len(spans))))
    text = np.arange(1, n + 1)
    example = data.layout_spans(text, spans, order, **IDS)
    masked = sum(b - a for a, b in spans)
    assert example.loss_weights.sum() == masked + len(spans)
    assert example.sep == n - masked + len(spans)
    pieces = np.split(
        example.targets[example.sep :], np.flatnonzero(example.targets[example.sep :] == P) + 1
    )
    by_mask = {}
    at = example.sep
    for piece in pieces[: len(spans)]:
        by_mask[int(example.positions[0, at])] = piece[:-1].tolist()
        at += len(piece)
    filled = []
    for i, token in enumerate(example.tokens[: example.sep]):
        filled += by_mask[i] if token == M else [int(token)]
    assert filled == text.tolist()
