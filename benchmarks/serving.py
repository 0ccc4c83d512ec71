"""A small random model, and a server of it in a process of its own, for measurements and tests."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from glm_jax.ckpts.model_dir import save_model
from glm_jax.config import GLMConfig, preset
from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.text import train_sentencepiece

VOCAB = 512


def small_config(layers: int = 6, width: int = 384) -> GLMConfig:
    """GLM-4's architecture at a size that a laptop serves."""
    return preset("glm-4-9b").replace(
        num_layers=layers, embed_dim=width, num_heads=width // 64, num_kv_heads=2, head_dim=64,
        mlp_dim=3 * width, vocab_size=VOCAB, max_seq_len=1024, stop_ids=(), init_std=0.06,
        name=f"random-{layers}x{width}",
    )  # fmt: skip


def write_model(folder: Path, config: GLMConfig) -> Path:
    """A model directory with random weights and a tokenizer made of a Python file."""
    texts = Path(argparse.__file__).read_text().splitlines()
    tokenizer = train_sentencepiece(texts, VOCAB)
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer.save(folder / "tokenizer")
    config = config.replace(special=tokenizer.special)
    model = jax.jit(lambda key: GLM(config, key))(jax.random.key(0))
    save_model(folder / "model", model, config, tokenizer_dir=folder / "tokenizer")
    return folder / "model"


class ServerProcess(NamedTuple):
    url: str
    pid: int
    process: subprocess.Popen
    said: list[str]
    """Its lines so far."""

    def resident_mb(self) -> float:
        """Its memory, as the kernel counts it."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@contextlib.contextmanager
def serving(model: Path, *options: str, seconds: float = 240) -> Iterator[ServerProcess]:
    """``python -m glm_jax.serve`` with these options on a free port, until the block ends.

    Raises:
      UserError: it does not come up.
    """
    command = [sys.executable, "-m", "glm_jax.serve", str(model), "--port", "0", *options]
    environment = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
    # The tests' eight virtual devices are nothing to serve on.
    environment.pop("XLA_FLAGS", None)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    said: list[str] = []
    ready = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line.rstrip())
            if line.startswith("ready:"):
                ready.set()
        ready.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        ready.wait(seconds)
        urls = [line.split()[1].rstrip("/") for line in said if line.startswith("ready:")]
        if not urls:
            raise UserError(f"the server did not come up: {'; '.join(said[-3:])}")
        yield ServerProcess(urls[0], process.pid, process, said)
    finally:
        process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
