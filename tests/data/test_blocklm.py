"""The reference's own batches (36 runs on real documents): what it blanked, laid out by us."""

import json

import numpy as np
import pytest

from glm_jax import data
from tests.released import GOLDEN

RUNS = json.loads((GOLDEN / "glm-10b" / "blocklm_data.json").read_text())


def rows_of(run):
    for i, sample in enumerate(run["samples"]):
        arrays = (np.array(run[k][i]) for k in ("text", "target", "loss_mask", "position_id"))
        yield sample, *arrays, run["attention_mask"][i]


def spans_of(text, positions, sep, length, sop):
    """(start, end) of each span in the uncorrupted text, and the order of the pieces of Part B."""
    starts = sep + np.flatnonzero(text[sep:length] == sop)
    at, lengths = positions[0][starts], np.diff(np.append(starts, length)) - 1
    in_text = np.argsort(at)
    before = np.cumsum(lengths[in_text] - 1) - (lengths[in_text] - 1)
    begins = at[in_text] + before
    return np.stack([begins, begins + lengths[in_text]], axis=1), np.argsort(in_text)


@pytest.mark.parametrize("index", range(len(RUNS["cases"])))
def test_layouts_are_the_reference_ones(index):
    run = RUNS["cases"][index]
    ids = RUNS["special_ids"][run["lang"]]
    name = {"bert": "MASK", "sentence": "sMASK", "gpt": "gMASK"}[run["mode"]]
    mask_id = ids[name] if run["params"].get("task_mask") else ids["MASK"]
    for sample, text, target, loss, positions, sep in rows_of(run):
        length = sep + np.count_nonzero(positions[1])
        tokens = np.array(sample["text"])
        suffix = length == len(tokens) + 1
        if suffix:
            ours = data.layout_suffix(
                tokens,
                length - sep,
                gmask_id=mask_id,
                sop_id=ids["sop"],
                loss_mask=sample["loss_mask"],
            )
        else:
            spans, order = spans_of(text, positions, sep, length, ids["sop"])
            ours = data.layout_spans(
                tokens,
                spans,
                order,
                mask_id=mask_id,
                sop_id=ids["sop"],
                eop_id=ids["eop"],
                block_positions=run["params"].get("block_position_encoding", True),
            )
        noise = text[:length] == ids["dBLOCK"]  # drawn after the layout
        assert np.array_equal(np.where(noise, ids["dBLOCK"], ours.tokens), text[:length])
        assert np.array_equal(ours.targets, target[:length])
        assert np.array_equal(ours.loss_weights, loss[:length])
        assert np.array_equal(ours.positions, positions[:, :length])
        assert ours.sep == sep
        assert not (text[length:].any() or loss[length:].any() or positions[:, length:].any())
