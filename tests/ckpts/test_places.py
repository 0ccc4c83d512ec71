"""The place of the data: parts of several processes as one state."""

import json

import pytest

from glm_jax.ckpts.places import PlaceHandler, RestorePlace, covers, united


def part(*rows):
    return {"step": 7, "main": {"rows": {str(row): f"place {row}" for row in rows}}}


def write(directory, *parts):
    for index, state in enumerate(parts):
        (directory / f"process_{index}-of-{len(parts)}.json").write_text(json.dumps(state))


def test_the_union_of_all_parts():
    assert united([part(0, 1), part(2), part(1, 2)]) == part(0, 1, 2)
    with pytest.raises(ValueError, match="processes differ in their place: 7 and others"):
        united([part(0), part(1) | {"step": 8}])


def test_what_a_part_covers():
    assert covers(part(0, 1, 2), part(1))
    assert not covers(part(0, 1), part(2))
    assert covers(3, 4)  # leaves are not compared


def test_one_process_reads_what_three_wrote(tmp_path):
    write(tmp_path, part(0), part(1), part(2, 3))
    found = PlaceHandler().restore(tmp_path, RestorePlace(part(0, 1, 2, 3)))
    assert found == part(0, 1, 2, 3)


def test_a_process_reads_its_own_where_that_is_enough(tmp_path):
    write(tmp_path, part(0, 1))
    (tmp_path / "process_0-of-2.json").write_text("not read")
    assert PlaceHandler().restore(tmp_path, RestorePlace(part(1))) == part(0, 1)


def test_a_missing_part_is_noticed(tmp_path):
    write(tmp_path, part(0), part(1), part(2, 3))
    (tmp_path / "process_1-of-3.json").unlink()
    with pytest.raises(FileNotFoundError, match="in 2 of 3 files"):
        PlaceHandler().restore(tmp_path, RestorePlace(part(0)))
