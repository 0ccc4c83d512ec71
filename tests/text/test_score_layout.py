"""How each family reads a prompt: positions, Part A, and what is refused."""

import numpy as np
import pytest

from glm_jax.config import preset
from glm_jax.errors import UserError
from glm_jax.special import SpecialTokens
from glm_jax.text.layout import lay_out, lay_out_answer, stack_rows

MASK, GMASK, SOP, EOP, SMASK, CLS, EOS = 90, 91, 94, 95, 92, 93, 89
SPECIAL = SpecialTokens(eos=EOP, mask=MASK, gmask=GMASK, sop=SOP, eop=EOP)
CHATGLM = preset("chatglm-6b").replace(vocab_size=100, max_seq_len=16, special=SPECIAL)
VERSION_1_0 = CHATGLM.replace(
    special=SpecialTokens(eos=2, mask=MASK, gmask=GMASK, sop=SOP, eop=EOP)
)
GLM = preset("glm-base").replace(
    vocab_size=100,
    max_seq_len=8,
    special=SpecialTokens(eos=EOS, mask=MASK, smask=SMASK, gmask=GMASK, sop=SOP, eop=EOP, cls=CLS),
)
CHATGLM2 = preset("chatglm2-6b").replace(vocab_size=100, max_seq_len=8)


def rows(row):
    return row.positions.tolist()


def test_chatglm2_on_reads_causally():
    row = lay_out([64, 66, 7], CHATGLM2)
    assert rows(row) == [[0, 1, 2], [0, 0, 0]]
    assert row.sep == 0
    assert row.following(2).tolist() == [[3, 4], [0, 0]]


def test_glm_puts_part_b_at_its_blank():
    row = lay_out([CLS, 5, MASK, 6, EOS, SOP, 7, 8], GLM)
    assert rows(row) == [[0, 1, 2, 3, 4, 2, 2, 2], [0, 0, 0, 0, 0, 1, 2, 3]]
    assert row.sep == 5
    assert row.following(2).tolist() == [[2, 2], [4, 5]]


def test_every_further_sop_of_glm_opens_the_next_blank():
    row = lay_out([MASK, 5, MASK, SOP, 7, SOP, 8, 9], GLM)
    assert rows(row) == [[0, 1, 2, 0, 0, 2, 2, 2], [0, 0, 0, 1, 2, 1, 2, 3]]
    assert row.following(1).tolist() == [[2], [4]]


def test_several_blanks_of_one_kind_and_one_sop_fill_the_first():
    assert lay_out([MASK, 5, MASK, SOP], GLM).positions[0].tolist() == [0, 1, 2, 0]


def test_chatglm_6b_stands_still_at_gmask():
    row = lay_out([5, 6, GMASK, SOP, 7, 8], CHATGLM)
    assert rows(row) == [[0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]]
    assert row.sep == 3
    assert row.following(1).tolist() == [[2], [4]]


def test_version_1_0_leaves_sop_where_it_is_after_gmask():
    row = lay_out([5, 6, GMASK, SOP, 7], VERSION_1_0)
    assert rows(row) == [[0, 1, 2, 3, 2], [0, 0, 0, 1, 2]]
    assert lay_out([5, MASK, 6, SOP, 7], VERSION_1_0).positions[0].tolist() == [0, 1, 2, 1, 1]
    assert lay_out([5, GMASK, SOP], VERSION_1_0).following(1).tolist() == [[1], [2]]


def test_chatglm_6b_with_one_row_of_positions_counts_on_after_gmask():
    row = lay_out([5, GMASK, SOP, 7], CHATGLM.replace(rope_2d=False))
    assert row.positions[0].tolist() == [0, 1, 2, 3]
    assert row.following(1)[0].tolist() == [4]


@pytest.mark.parametrize(
    ("config", "prompt"),
    [(GLM, [CLS, 5, MASK, SOP]), (CHATGLM, [5, GMASK, SOP]), (CHATGLM2, [64, 66, 7])],
)
def test_an_answer_stands_where_it_was_written_whatever_it_holds(config, prompt):
    plain, found = (
        lay_out([*prompt, 7, 8, 9], config),
        lay_out_answer(prompt, [7, SOP, MASK], config),
    )
    assert found.tokens.tolist() == [*prompt, 7, SOP, MASK]
    assert rows(found) == rows(plain)
    assert (found.sep, found.anchor) == (plain.sep, plain.anchor)
    with pytest.raises(UserError, match="this model's positions end at"):
        lay_out_answer([5] * 8 + prompt, [7] * 12, config)


def test_rows_are_padded_on_the_right_with_what_sees_nothing():
    batch = stack_rows([lay_out([5, GMASK, SOP, 7], CHATGLM), lay_out([MASK, SOP], CHATGLM)], 6)
    assert batch.k_end.tolist() == [[2, 2, 3, 4, 0, 0], [1, 2, 0, 0, 0, 0]]
    assert batch.tokens[1].tolist() == [MASK, SOP, 0, 0, 0, 0]
    assert batch.lengths.tolist() == [4, 2]
    assert not np.any(batch.k_start)


@pytest.mark.parametrize(
    ("config", "ids", "message"),
    [
        (CHATGLM2, [], "the prompt is empty"),
        (CHATGLM2, [5, 100, 3], r"id 100 at place 1 is outside the vocabulary \(0 to 99\)"),
        (CHATGLM2, [5, -1], "id -1 at place 1"),
        (CHATGLM2, [0.5], "a list of ids"),
        (CHATGLM2, list(range(9)), r"9 tokens reach position 8, .* end at 7 \(max_seq_len 8\)"),
        (CHATGLM, [5, GMASK, 6], r"no sop \(id 94\) among the 3 ids"),
        (CHATGLM, [5, SOP, 6], r"no mask token before sop \(place 1\).*\[MASK\] 90, \[gMASK\] 91"),
        (CHATGLM, [5, SOP, GMASK], "no mask token before sop"),
        (
            CHATGLM,
            [5, MASK, 6, GMASK, SOP],
            "two different mask tokens before sop: id 90 at place 1 and id 91 at place 3",
        ),
        (GLM, [CLS, SMASK, MASK, SOP], "two different mask tokens"),
        (GLM, [CLS, MASK, SOP, 5, SOP], r"there are 2 sop \(id 94; the last at place 4\) for 1"),
        (GLM, [5] * 9 + [MASK, SOP], "11 tokens reach position 9, .* end at 8"),
        (GLM.replace(special=SpecialTokens()), [5], "does not say which ids"),
    ],
)
def test_what_breaks_the_rule_is_said_with_its_place(config, ids, message):
    with pytest.raises(UserError, match=message):
        lay_out(ids, config)


def test_a_long_part_b_is_fine_where_only_blocks_count():
    assert len(lay_out([CLS, MASK, *[5] * 6, SOP, *[6] * 5], GLM).tokens) == 14
