"""File formats: what PyTorch writes is read without it, and nothing in a file is run."""

import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from convert.checkpoint import open_released, read_weights
from convert.megatron import read_model_parallel
from convert.pickle_writer import write_pickled
from convert.plan import make_plan
from convert.readers.pickled import read_pickled
from convert.tensors import BFLOAT16, Dequantized, read_all, unpack_int4
from glm_jax.errors import UserError
from tests.goldens import HERE, golden

TORCH = HERE / "torch_files"


@pytest.mark.parametrize("file", ["kinds.bin", "kinds_legacy.bin"])
def test_every_kind_of_tensor_that_torch_saves(file):
    wanted = np.load(TORCH / "kinds.npz")
    found = read_pickled(TORCH / file).tensors
    assert set(found) == set(wanted)
    assert found["bfloat16"].dtype == BFLOAT16
    for name in wanted:
        x = read_all(found[name])
        np.testing.assert_array_equal(x.astype(np.float32), wanted[name], err_msg=name)
        if x.ndim and len(x) > 1:
            np.testing.assert_array_equal(found[name].rows(1, len(x)), x[1:], err_msg=name)


def test_what_we_pickle_reads_back(tmp_path):
    tensors = {"a.b": np.arange(6, dtype=np.int64).reshape(2, 3), "c": np.ones((3,), BFLOAT16)}
    tensors["big"] = np.zeros((300, 2), np.float16)
    write_pickled(tmp_path / "x.bin", tensors)
    found = read_pickled(tmp_path / "x.bin").tensors
    for name, x in tensors.items():
        assert found[name].dtype == x.dtype
        np.testing.assert_array_equal(read_all(found[name]), x)


def test_torch_reads_what_we_pickle(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_pickled(tmp_path / "x.bin", {"x": x, "half": x.astype(np.float16)})
    found = torch.load(tmp_path / "x.bin", weights_only=True)
    np.testing.assert_array_equal(found["x"].numpy(), x)
    np.testing.assert_array_equal(found["half"].numpy(), x)


def test_model_parallel_ranks_are_merged():
    ranks = sorted(TORCH.glob("mp_rank_*"))
    config, tensors = read_model_parallel(ranks, {})
    assert config["num_attention_heads"] == 4  # from the training arguments in the file
    wanted = np.load(TORCH / "mp_merged.npz")
    assert set(tensors) == set(wanted)
    for name in wanted:
        assert tensors[name].shape == wanted[name].shape
        np.testing.assert_array_equal(read_all(tensors[name]), wanted[name], err_msg=name)
        if len(wanted[name]) > 6:
            np.testing.assert_array_equal(tensors[name].rows(3, 7), wanted[name][3:7])


def test_model_parallel_folder_with_latest(tmp_path):
    (tmp_path / "500").mkdir()
    for path in TORCH.glob("mp_rank_*"):
        (tmp_path / "500" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "latest").write_text("500\n")
    assert make_plan(open_released(tmp_path)).config.num_layers == 2
    (tmp_path / "500" / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(UserError, match="lacks mp_rank_00_model_states"):
        open_released(tmp_path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/glm_jax_was_here",)


class Sneaky:
    def __reduce__(self):
        return eval, ("__import__('os').getpid()",)


def zipped(payload: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


@pytest.mark.parametrize("thing", [Evil(), {"a.weight": Sneaky()}, np.save, pathlib.Path("x")])
@pytest.mark.parametrize("wrap", [zipped, bytes], ids=["zip", "legacy"])
def test_a_pickle_that_carries_code_is_named_and_not_run(thing, wrap, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(wrap(pickle.dumps(thing)))
    with pytest.raises(UserError, match=r"pytorch_model\.bin carries code: its pickle asks for"):
        open_released(tmp_path)
    assert not os.path.exists("/tmp/glm_jax_was_here")


BAD = {
    "empty": (b"", "is empty"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "html": (b"<!DOCTYPE html><html>not found</html>" * 9, "damaged or no PyTorch checkpoint|"
             "no safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("kind", BAD)
def test_downloads_that_went_wrong(kind, suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(BAD[kind][0])
    with pytest.raises(UserError, match=BAD[kind][1]) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.99])
@pytest.mark.parametrize("file", ["kinds.bin", "kinds_legacy.bin"])
def test_a_cut_file_says_so(file, keep, tmp_path):
    data = (TORCH / file).read_bytes()
    (tmp_path / "x.bin").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=r"damaged|cut short"):
        for x in read_weights(tmp_path / "x.bin")[0].values():
            read_all(x)


def test_int4_halves():
    packed = np.array([[0x1F, 0x80]], np.uint8).view(np.int8)
    np.testing.assert_array_equal(unpack_int4(packed), [[1, -1, -8, 0]])


@pytest.mark.parametrize("case", ["chatglm-6b-int4", "chatglm2-6b-int4", "chatglm-6b-int8"])
def test_dequantised_as_the_released_kernel_does(case):
    from safetensors.numpy import load_file

    folder = golden(case)
    cases = load_file(folder / "cases.safetensors")
    tensors = open_released(folder).tensors
    names = {key.split("/")[1] for key in cases if key.startswith("matrix/")}
    assert len(names) == 4
    for name in names:
        weight, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"]
        x = Dequantized(weight, scale, case.endswith("4"))
        wanted = cases[f"matrix/{name}/dequant_float"]
        assert x.shape == wanted.shape
        np.testing.assert_array_equal(read_all(x), wanted)
        np.testing.assert_array_equal(x.rows(3, 9), wanted[3:9])
        if f"matrix/{name}/dequant_half" in cases:
            half = read_all(x).astype(np.float16)
            np.testing.assert_array_equal(half, cases[f"matrix/{name}/dequant_half"])
