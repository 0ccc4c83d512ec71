import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from glm_jax.ckpts import TrainCheckpoints
from glm_jax.errors import UserError
from glm_jax.sharding import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=8))
WHOLE = PartitionSpec()


class Counter:
    """A data iterator whose whole state is a number."""

    def __init__(self, at: int = 0):
        self.at = at

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


def state(step: int, spec=WHOLE, mesh=MESH):
    rng = np.random.default_rng(step)
    weight = jnp.asarray(rng.normal(size=(16, 64)), jnp.float32)
    sharded = jax.device_put(weight, NamedSharding(mesh, spec))
    number = jax.device_put(jnp.asarray(step), NamedSharding(mesh, PartitionSpec()))
    return {"model": {"w": sharded}, "step": number}


def like(spec=WHOLE, mesh=MESH):
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return jax.tree.map(shape, state(0, spec, mesh))


def write(directory, *steps, keep=3):
    checkpoints = TrainCheckpoints(directory, {"seed": 0}, keep=keep)
    for step in steps:
        checkpoints.save(step, state(step), Counter(10 * step))
    checkpoints.close()


def restore(directory, target=None, run=None):
    """(step, place of the data, warnings)."""
    data, warnings = Counter(), []
    checkpoints = TrainCheckpoints(directory, run or {"seed": 0})
    found = checkpoints.restore_latest(target or like(), data, warnings.append)
    checkpoints.close()
    if found is None:
        return None, data.at, warnings
    step = int(found["step"])
    np.testing.assert_array_equal(found["model"]["w"], state(step)["model"]["w"])
    return step, data.at, warnings


def data_file(directory: pathlib.Path) -> pathlib.Path:
    return max((p for p in directory.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_nothing_there(tmp_path):
    assert restore(tmp_path) == (None, 0, [])


def test_the_newest_comes_back_with_its_data_and_the_oldest_go(tmp_path):
    write(tmp_path, 1, 2, 3, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    assert restore(tmp_path) == (3, 30, [])


def test_onto_another_mesh(tmp_path):
    write(tmp_path, 5)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    assert restore(tmp_path, like(PartitionSpec("fsdp", "tensor"), mesh)) == (5, 50, [])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no data state", "emptied"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, damage):
    write(tmp_path, 1, 2)
    path = data_file(tmp_path / "2" / "state")
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "no data state":
        next((tmp_path / "2" / "data").glob("process*")).unlink()
    else:
        for file in (tmp_path / "2").rglob("*"):
            if file.is_file():
                file.unlink()
    step, place, warnings = restore(tmp_path)
    assert (step, place) == (1, 10)
    assert len(warnings) == 1 and "\n" not in warnings[0]
    assert f"checkpoint {tmp_path / '2'} is damaged and left out" in warnings[0]
    write(tmp_path, 2)  # its place is free again
    assert restore(tmp_path) == (2, 20, [])


def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path):
    write(tmp_path, 1)
    data_file(tmp_path / "1" / "state").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 checkpoints .* is whole"):
        restore(tmp_path)


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "2.orbax-checkpoint-tmp-7" / "state").mkdir(parents=True)
    assert restore(tmp_path) == (1, 10, [])
    write(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3"]


def test_another_run_is_refused(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(UserError, match="made with seed=0, this run has seed=1"):
        restore(tmp_path, run={"seed": 1})


def test_another_model_is_refused_and_the_checkpoint_kept(tmp_path):
    write(tmp_path, 1)
    target = like()
    target["model"]["w"] = jax.ShapeDtypeStruct((8, 8), "float32", sharding=None)
    with pytest.raises(UserError, match=r"model.w is \(16, 64\), not \(8, 8\)"):
        restore(tmp_path, target)
    assert (tmp_path / "1").exists()


def test_a_disk_too_small_is_said_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    checkpoints = TrainCheckpoints(tmp_path, {})
    with pytest.raises(UserError, match=r"no room .* it needs 2.0 MB, 1.0 MB are free"):
        checkpoints.save(1, state(1), Counter())
    checkpoints.close()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    checkpoints = TrainCheckpoints(tmp_path, {})
    monkeypatch.setattr(pathlib.Path, "mkdir", full)
    monkeypatch.setattr("os.mkdir", full)
    with pytest.raises(UserError) as error:
        checkpoints.save(1, state(1), Counter(), wait=True)
    monkeypatch.undo()
    assert "could not be written: No space left on device" in str(error.value)
    assert "\n" not in str(error.value)
