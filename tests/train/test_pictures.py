"""The demo's pictures and blanks, on a few hand-made numbers."""

import json

import numpy as np
from matplotlib import image

from glm_jax import data
from train import pictures


def test_the_log_becomes_curves(tmp_path):
    log = tmp_path / "log.jsonl"
    entries = [{"kind": "train", "step": s, "loss": 9 - s, "mask": 9 - s} for s in range(1, 5)]
    entries.append({"kind": "heldout", "step": 4, "mask": 5.5})
    log.write_text("".join(json.dumps(e) + "\n" for e in entries))
    read = pictures.read_log(log)
    assert [e["step"] for e in read["train"]] == [1, 2, 3, 4]
    pictures.loss_curves(read, tmp_path / "loss.png")
    assert image.imread(tmp_path / "loss.png").std() > 0.01


def test_part_a_and_part_b_have_their_colours(tmp_path):
    example = data.layout_spans(range(10, 40), [(5, 15)], [0], mask_id=1, sop_id=2, eop_id=3)
    packer = data.Packer(64)
    packer.add(example, 0)
    (row,) = packer.flush()
    batch = {name: x[None] for name, x in row.items()}
    pictures.packed_row(pictures.fullest_row([batch]), tmp_path / "row.png")
    drawn = image.imread(tmp_path / "row.png")[..., :3]
    for colour in (pictures.PART_A, pictures.PART_B):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(drawn - rgb).max(axis=-1) < 0.01).mean() > 0.01
