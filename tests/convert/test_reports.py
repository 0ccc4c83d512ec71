"""What is wrong with a checkpoint is said, all of it, and nothing is left behind."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from convert import from_torch, store
from convert.from_torch import convert
from convert.plan import Report
from convert.tensors import BFLOAT16
from convert.to_torch import export
from convert.verify import compare
from glm_jax.ckpts import load_config
from glm_jax.errors import UserError
from tests.convert import files

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LAYER = "transformer.encoder.layers.0."


@pytest.fixture
def src(tmp_path):
    files.make_released(tmp_path / "src", "chatglm2-6b")
    return tmp_path / "src"


def rewrite(src, change, family="chatglm2-6b"):
    tensors = files.random_tensors(files.small(family), files.layout_of(family))
    change(tensors)
    files.write_safetensors(src, tensors)


def problems(src, tmp_path, **options) -> str:
    with pytest.raises(UserError) as caught:
        convert(src, tmp_path / "out", **options)
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []
    return str(caught.value)


def test_everything_that_is_wrong_stands_in_one_report(src, tmp_path):
    def change(tensors):
        del tensors[f"{LAYER}mlp.dense_4h_to_h.weight"]
        tensors["transformer.surprise"] = np.zeros((2, 2), np.float32)
        tensors[f"{LAYER}self_attention.dense.weight"] = np.zeros((3, 16), np.float32)
        tensors[f"{LAYER}input_layernorm.weight"] = np.zeros(16, np.int32)

    rewrite(src, change)
    text = problems(src, tmp_path)
    assert "4 problems" in text
    assert f"missing: {LAYER}mlp.dense_4h_to_h.weight [16, 24]" in text
    assert "unexpected: transformer.surprise [2, 2]" in text
    assert f"mis-shaped: {LAYER}self_attention.dense.weight is [3, 16]" in text
    assert f"mis-typed: {LAYER}input_layernorm.weight holds int32" in text


def test_buffers_are_passed_over_and_given_back(src, tmp_path):
    freqs = np.linspace(1, 0, 4, dtype=np.float32)
    rewrite(src, lambda t: t.update({"transformer.rotary_pos_emb.inv_freq": freqs}))
    convert(src, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    files.assert_same_tensors(src, tmp_path / "back")


def test_a_head_that_is_the_embedding_is_stored_once(tmp_path):
    files.make_released(tmp_path / "src", "chatglm-6b")
    plan = convert(tmp_path / "src", tmp_path / "ours")
    assert plan.config.tied_head
    assert "head" not in plan.targets
    assert any("repeats" in note for note in plan.notes)


def test_a_head_of_its_own_is_kept(tmp_path):
    config = files.make_released(tmp_path / "src", "chatglm-6b")
    other = np.ones((config.vocab_size, config.embed_dim), np.float32)
    rewrite(tmp_path / "src", lambda t: t.update({"lm_head.weight": other}), "chatglm-6b")
    plan = convert(tmp_path / "src", tmp_path / "ours")
    assert not load_config(tmp_path / "ours").tied_head
    assert any("differs" in note for note in plan.notes)
    export(tmp_path / "ours", tmp_path / "back")
    assert json.loads((tmp_path / "back/config.json").read_text())["tie_word_embeddings"] is False


def test_a_tied_transformers_model_needs_no_head(tmp_path):
    config = files.small("glm-4-9b-chat").replace(tied_head=True)
    tensors = files.random_tensors(config, "transformers")
    del tensors["lm_head.weight"]
    files.write_config(tmp_path / "src", config, "transformers")
    files.write_safetensors(tmp_path / "src", tensors)
    convert(tmp_path / "src", tmp_path / "ours")
    assert load_config(tmp_path / "ours").tied_head
    export(tmp_path / "ours", tmp_path / "back")
    files.assert_same_tensors(tmp_path / "src", tmp_path / "back")


def test_an_index_that_lies(tmp_path):
    config = files.small("chatglm2-6b")
    tensors = files.random_tensors(config, "chatglm2")
    src = tmp_path / "src"
    files.write_config(src, config, "chatglm2")
    files.write_bins(src, tensors, count=2)
    path = src / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    names = list(index["weight_map"])
    index["weight_map"]["not.there"] = index["weight_map"][names[0]]
    index["weight_map"][names[-1]] = index["weight_map"][names[0]]
    path.write_text(json.dumps(index))
    text = problems(src, tmp_path)
    assert "missing: not.there is not in pytorch_model-00001" in text
    assert f"misplaced: pytorch_model.bin.index.json has {names[-1]}" in text
    index["weight_map"] = {"x": "../elsewhere.bin"}
    path.write_text(json.dumps(index))
    assert "not in its folder" in problems(src, tmp_path)
    index["weight_map"] = {"x": "pytorch_model-00009-of-00002.bin"}
    path.write_text(json.dumps(index))
    assert "pytorch_model-00009-of-00002.bin is missing" in problems(src, tmp_path)


def test_the_same_tensor_in_two_shards(tmp_path):
    config = files.small("chatglm2-6b")
    tensors = files.random_tensors(config, "chatglm2")
    src = tmp_path / "src"
    files.write_config(src, config, "chatglm2")
    files.write_safetensors(src, tensors)
    (src / "model.safetensors").rename(src / "model-a.safetensors")
    shutil.copyfile(src / "model-a.safetensors", src / "model-b.safetensors")
    assert f"duplicated: {LAYER}input_layernorm.weight is in model-a.safetensors" in problems(
        src, tmp_path
    )


def test_a_config_of_another_family(src, tmp_path):
    files.write_config(src, files.small("chatglm-6b"), "chatglm")
    assert "describes the layout 'chatglm', but the tensors" in problems(src, tmp_path)
    (src / "config.json").unlink()
    assert "config.json is missing" in problems(src, tmp_path)
    (src / "config.json").write_text("{")
    assert "config.json is not JSON" in problems(src, tmp_path)


def test_not_a_checkpoint(tmp_path):
    assert "does not exist" in problems(tmp_path / "nowhere", tmp_path)
    (tmp_path / "void").mkdir()
    assert "holds no weights" in problems(tmp_path / "void", tmp_path)
    files.write_config(tmp_path / "bert", files.small("chatglm2-6b"), "chatglm2")
    files.write_safetensors(tmp_path / "bert", {"bert.pooler": np.zeros(3, np.float32)})
    assert "no known family" in problems(tmp_path / "bert", tmp_path)


def test_a_truncated_shard_found_late_leaves_nothing(src, tmp_path, monkeypatch):
    """The header is whole, so the loss shows only when the numbers are read."""
    path = src / "model.safetensors"
    size = path.stat().st_size
    real = pathlib.Path.stat

    class Longer:
        def __init__(self, stat):
            self._stat = stat

        def __getattr__(self, name):
            return size if name == "st_size" else getattr(self._stat, name)

    with open(path, "r+b") as file:
        file.truncate(size - 100)
    monkeypatch.setattr(
        pathlib.Path, "stat", lambda p, **k: Longer(real(p, **k)) if p == path else real(p, **k)
    )
    assert "model.safetensors is cut short" in problems(src, tmp_path)


def test_existing_target(src, tmp_path):
    convert(src, tmp_path / "ours")
    with pytest.raises(UserError, match="exists already"):
        convert(src, tmp_path / "ours")
    convert(src, tmp_path / "ours", overwrite=True)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_disk_that_is_too_small(src, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "free; out needs" in problems(src, tmp_path)


def test_a_disk_that_fills_up(src, tmp_path, monkeypatch):
    def full(self, part, x):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.ParamsWriter, "write", full)
    assert "the disk is full" in problems(src, tmp_path)


def test_too_little_memory(src, tmp_path):
    assert "give at least 1GB" in problems(src, tmp_path, host_memory=10_000_000)
    convert(src, tmp_path / "small", host_memory=1_000_000_000)


def test_tensors_are_cut_into_pieces(tmp_path, monkeypatch):
    """With pieces of 256 bytes every matrix takes many; nothing may change."""
    for family in files.FAMILIES:
        src, ours, back = (tmp_path / f"{family}-{x}" for x in ("src", "ours", "back"))
        files.make_released(src, family, dtype=BFLOAT16)
        for module in ("from_torch", "to_torch"):
            monkeypatch.setattr(f"convert.{module}.chunk_bytes", lambda memory: 256)
        convert(src, ours)
        assert len(list((ours / "params" / "layers.mlp.down_proj.weight").iterdir())) > 4
        export(ours, back)
        _, rows = compare(src, ours)
        assert sum(row.differing for row in rows) == 0
        _, rows = compare(back, ours)
        assert sum(row.differing for row in rows) == 0


def test_killed_in_the_middle(src, tmp_path):
    """kill -9: nothing looks whole, and the same command works afterwards."""
    script = (
        "import os, sys, time\n"
        "from convert import store\n"
        "real = store.ParamsWriter.write\n"
        "def slow(self, part, x):\n"
        "    real(self, part, x)\n"
        "    os.write(1, b'wrote\\n')\n"  # several threads write: print's two parts may interleave
        "    time.sleep(30)\n"
        "store.ParamsWriter.write = slow\n"
        "from convert.from_torch import convert\n"
        "convert(sys.argv[1], sys.argv[2])\n"
    )
    out = tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(src), str(out)],
        cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == b"wrote\n"
    with pytest.raises(UserError, match="being written by another process"):
        convert(src, out)
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    assert not out.exists()
    convert(src, out)
    _, rows = compare(src, out)
    assert sum(row.differing for row in rows) == 0
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_verify_sees_a_changed_number(src, tmp_path):
    convert(src, tmp_path / "ours")
    rewrite(src, lambda t: t[f"{LAYER}mlp.dense_4h_to_h.weight"].__setitem__((2, 5), 7.0))
    _, rows = compare(src, tmp_path / "ours")
    wrong = [row for row in rows if row.differing]
    assert [(row.name, row.differing) for row in wrong] == [
        ("transformer.encoder.layers.{i}.mlp.dense_4h_to_h.weight", 1)
    ]
    assert wrong[0].largest > 1


def run(module, *args):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert time.monotonic() - start < 120
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_command_lines(src, tmp_path):
    out = run("convert.from_torch", src, tmp_path / "ours", "--dtype", "bfloat16")
    assert out.returncode == 0, out.stderr
    assert "chatglm2-6b, in the layout of ChatGLM2" in out.stdout
    again = run("convert.from_torch", src, tmp_path / "ours")
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "exists already" in again.stderr
    wrong = run("convert.from_torch", src, tmp_path / "x", "--dtype", "int7")
    assert wrong.returncode == 2
    assert "int7" in wrong.stderr
    back = run("convert.to_torch", tmp_path / "ours", tmp_path / "back", "--shard-size", "lots")
    assert "--shard-size is 'lots'" in back.stderr
    equal = run("convert.verify", src, tmp_path / "ours")
    assert equal.returncode == 0
    assert "bit for bit" in equal.stdout
    rewrite(src, lambda t: t["transformer.output_layer.weight"].__setitem__((0, 0), 9.0))
    assert run("convert.verify", src, tmp_path / "ours").returncode == 1


def test_report_is_an_error_for_people():
    assert issubclass(Report, UserError)
    assert from_torch.Args.__doc__ is not None
