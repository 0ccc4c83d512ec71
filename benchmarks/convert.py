"""Speed and memory of conversion, beside ``cp -r`` of the same bytes to the same disk.

python -m benchmarks.convert --params 6.2B

Makes a random chatglm2-6b checkpoint (bfloat16, several .safetensors shards), converts it there and
back, each in a process of its own, and copies it with ``cp -r``; prints one JSON line. A ratio of
1.0 is as fast as ``cp -r``. The input is dropped from the page cache before every run, so that each
reads the disk.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # nothing is computed on an accelerator
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

from convert.families import LAYOUTS
from convert.plan import param_shapes
from convert.shards import plan_shards, write_at, write_headers
from convert.tensors import BFLOAT16
from glm_jax import command_line
from glm_jax.config import GLMConfig, num_params, preset
from glm_jax.errors import UserError

SHARD = 1_980_000_000  # as chatglm2-6b was released: seven files


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures from_torch and to_torch beside cp -r."""

    params: str = "6.2B"
    """Size of the checkpoint; fewer layers of chatglm2-6b where it is less than 6.2B."""
    dir: Path | None = None
    """Where to work; by default a temporary folder. Four times the checkpoint must fit."""
    repeats: int = 1
    """Runs of each; the median counts."""


def main(args: Args) -> None:
    config = sized(args.params)
    if args.dir is not None:
        args.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="convert-bench-") as folder:
        print(json.dumps(measure(Path(folder), config, args.repeats)))


def sized(text: str) -> GLMConfig:
    """chatglm2-6b with as many layers as make up this many parameters.

    Raises:
      UserError: not a number such as 6.2B or 500M.
    """
    full = preset("chatglm2-6b")
    try:
        wanted = float(text[:-1]) * {"B": 1e9, "M": 1e6}[text[-1:].upper()]
    except (ValueError, KeyError):
        raise UserError(f"--params is {text!r}; write a number such as 6.2B or 900M") from None
    layer = num_params(full) - num_params(full.replace(num_layers=full.num_layers - 1))
    layers = round((wanted - (num_params(full) - full.num_layers * layer)) / layer)
    if not 1 <= layers <= full.num_layers:
        raise UserError(f"--params {text} is out of range; between 0.8B and 6.2B")
    return full.replace(num_layers=layers)


def measure(folder: Path, config: GLMConfig, repeats: int) -> dict:
    """Runs everything; returns the JSON line."""
    src, ours, back = folder / "released", folder / "ours", folder / "back"
    size = make_checkpoint(src, config)
    copy = lambda: timed(["cp", "-r", str(src), str(folder / "copy")], src, folder / "copy")
    command = lambda name, a, b: [sys.executable, "-m", f"convert.{name}", str(a), str(b)]
    runs: dict[str, list[tuple[float, float]]] = {"cp": [], "from_torch": [], "to_torch": []}
    for _ in range(repeats):
        runs["cp"].append(copy())
        runs["from_torch"].append(timed(command("from_torch", src, ours), src, ours, keep=True))
        runs["to_torch"].append(timed(command("to_torch", ours, back), ours, back, keep=True))
        verify = subprocess.run(command("verify", back, ours), stdout=subprocess.DEVNULL)
        shutil.rmtree(ours)
        shutil.rmtree(back)
    cp = statistics.median(seconds for seconds, _ in runs["cp"])
    line: dict = {
        "benchmark": "convert",
        "params": num_params(config),
        "gb": round(size / 1e9, 3),
        "cp_seconds": round(cp, 2),
        "round_trip_equal": verify.returncode == 0,
    }
    for name in ("from_torch", "to_torch"):
        seconds = statistics.median(seconds for seconds, _ in runs[name])
        line[name] = {
            "seconds": round(seconds, 2),
            "gb_per_s": round(size / 1e9 / seconds, 3),
            "ratio_to_cp": round(cp / seconds, 3),
            "peak_rss_gb": round(max(rss for _, rss in runs[name]), 3),
        }
    return line


def make_checkpoint(folder: Path, config: GLMConfig) -> int:
    """A random checkpoint as released; returns its bytes of weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_hf(), indent=2))
    rules = [r for r in LAYOUTS["chatglm2"].rules(config, param_shapes(config), "") if not r.alias]
    rules.sort(key=lambda rule: -1 if rule.layer is None else rule.layer)
    plan = plan_shards([(rule.theirs, rule.shape, BFLOAT16) for rule in rules], SHARD)
    write_headers(folder, plan)
    if plan.index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(plan.index))
    rng = np.random.default_rng(0)
    # One block of random numbers, rotated: making 12 GB of them takes longer than converting.
    block = (rng.standard_normal(1 << 24, np.float32) * 0.02).astype(BFLOAT16)
    for number, rule in enumerate(rules):
        count = int(np.prod(rule.shape))
        start = number * 7919 % block.size
        x = np.resize(np.roll(block, start), count).reshape(rule.shape)
        write_at(folder, plan.plots[rule.theirs], 0, x)
    os.sync()
    return plan.num_bytes


def timed(command: list[str], reads: Path, writes: Path, *, keep: bool = False):
    """Wall seconds and peak resident GB of a command that reads one folder and writes another."""
    drop_from_cache(reads)
    os.sync()
    start, peak = time.perf_counter(), 0.0
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while child.poll() is None:
        peak = max(peak, peak_resident(child.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise UserError(f"{' '.join(command)} failed")
    if not keep:
        shutil.rmtree(writes)
    return seconds, peak


def peak_resident(pid: int) -> float:
    """GB that a process has held at most so far (Linux; a child's rusage counts its parent too)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), "0 0")
    return int(line.split()[1]) * 1024 / 1e9


def drop_from_cache(folder: Path) -> None:
    """So that the next reader reads the disk (Linux; elsewhere nothing happens)."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    command_line.run(
        lambda: main(command_line.parse(Args, "python -m benchmarks.convert", sys.argv[1:]))
    )
