"""Mutated checkpoints: each ends in an error for people or in an equal model, none in a traceback.

Bytes are flipped, cut, doubled and swapped in headers, pickles, indexes and configs; entries of
JSON files are replaced by nonsense.
"""

import json
import random
import shutil

import numpy as np
import pytest

from convert.checkpoint import open_released
from convert.from_torch import convert
from convert.plan import make_plan
from convert.tensors import read_all
from convert.verify import compare
from glm_jax.errors import UserError
from tests.convert import files

CASES = 500
NONSENSE = [None, -1, 0, 1, 2**40, 1.5, "x", "", [], [1, -2], {}, True, "../../etc/passwd", "F33"]
FORMATS = {
    "safetensors": ("model.safetensors", "config.json"),
    "shards": ("model-00001-of-", "model.safetensors.index.json", "config.json"),
    "bin": ("pytorch_model.bin", "config.json"),
    "bins": ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "config.json"),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """One small checkpoint in every file format, and its tensors."""
    config = files.small("chatglm2-6b").replace(num_layers=1)
    tensors = files.random_tensors(config, "chatglm2", dtype=np.float16)
    root = tmp_path_factory.mktemp("fuzz")
    writers = {
        "safetensors": lambda to: files.write_safetensors(to, tensors),
        "shards": lambda to: files.write_safetensors(to, tensors, shard_size=2000),
        "bin": lambda to: files.write_bins(to, tensors),
        "bins": lambda to: files.write_bins(to, tensors, count=2),
    }
    for name, write in writers.items():
        files.write_config(root / name, config, "chatglm2")
        write(root / name)
    return root


def mutate(path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(json.dumps(mutate_json(json.loads(data), rng)))
        return
    if path.suffix == ".safetensors" and rng.random() < 0.5:
        length = int.from_bytes(data[:8], "little")
        header = mutate_json(json.loads(data[8 : 8 + length]), rng)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        return
    # Most of a file is numbers, where a change is no error: aim at what describes them.
    spot = rng.randrange(min(len(data), 3000))
    kind = rng.choice(["flip", "byte", "cut", "double", "swap"])
    if kind == "flip":
        data[spot] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[spot] = rng.randrange(256)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "double":
        data[spot:spot] = data[spot : spot + rng.randrange(1, 40)]
    else:
        other = rng.randrange(len(data))
        data[spot], data[other] = data[other], data[spot]
    path.write_bytes(data)


def mutate_json(content, rng: random.Random):
    """One entry anywhere in it replaced, removed, renamed or moved."""
    places = []

    def walk(node):
        if isinstance(node, dict | list) and node:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            for key in keys:
                places.append((node, key))
                walk(node[key])

    walk(content)
    node, key = rng.choice(places)
    kind = rng.choice(["nonsense", "remove", "rename", "swap"])
    if kind == "nonsense":
        node[key] = rng.choice(NONSENSE)
    elif kind == "remove":
        del node[key]
    elif kind == "rename" and isinstance(node, dict):
        node[f"{key}_"] = node.pop(key)
    else:
        other, at = rng.choice(places)
        node[key], other[at] = other[at], node[key]
        try:
            json.dumps(content)
        except ValueError:  # a node inside itself
            return NONSENSE
    return content


@pytest.mark.parametrize("block", range(10))
def test_mutated_checkpoints(block, originals, tmp_path):
    outcomes = {"error": 0, "equal": 0, "changed numbers": 0}
    for case in range(block * CASES // 10, (block + 1) * CASES // 10):
        rng = random.Random(case)
        kind = rng.choice(list(FORMATS))
        work = tmp_path / "work"
        shutil.copytree(originals / kind, work)
        wanted = rng.choice(FORMATS[kind])
        path = next(p for p in sorted(work.iterdir()) if p.name.startswith(wanted))
        mutate(path, rng)
        outcomes[outcome(work, originals / kind, tmp_path / "out")] += 1
        for leftover in tmp_path.iterdir():
            assert leftover.name in ("work", "out"), f"case {case} left {leftover}"
            shutil.rmtree(leftover)
    assert outcomes["error"] > 10
    assert outcomes["equal"] > 0


def outcome(src, original, out) -> str:
    """Converts; what came out must be what the files say."""
    try:
        convert(src, out)
    except UserError as error:
        assert str(error)
        assert not out.exists()
        return "error"
    _, rows = compare(src, out)
    assert sum(row.differing for row in rows) == 0
    theirs, ours = (make_plan(open_released(p)) for p in (original, src))
    same = theirs.config == ours.config and set(theirs.sources) == set(ours.sources)
    bits = lambda plan: [read_all(plan.sources[name]).tobytes() for name in sorted(plan.sources)]
    return "equal" if same and bits(theirs) == bits(ours) else "changed numbers"
