"""Shared by the tests that train: a small corpus, and runs in processes of their own."""

from __future__ import annotations

import json
import os
import pathlib
import random
import subprocess
import sys

from tests.conftest import QUICK

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write_corpus(path: pathlib.Path, documents: int = 120) -> None:
    """One text file per document: sentences of a small made-up language."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 7))) for _ in range(400)]
    path.mkdir(parents=True)
    for i in range(documents):
        sentences = [" ".join(rng.choices(words, k=rng.randint(4, 9))) + "." for _ in range(12)]
        (path / f"{i:03}.txt").write_text(" ".join(sentences) + "\n")


def command(output: pathlib.Path, corpus: pathlib.Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "train.pretrain", "--preset", "tiny"),
        *("--output", str(output), "--tokenizer", str(corpus.parent / "tokenizer")),
        *("--data.source", f"files:{corpus}/*.txt", "--data.cache-dir", str(corpus.parent)),
        *options,
    ]


def start(args: list[str], **environment: str) -> subprocess.Popen:
    """One CPU device, whatever the tests themselves use; XLA_FLAGS are added to the tests' own."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    env["XLA_FLAGS"] = f"{QUICK} {environment.get('XLA_FLAGS', '')}".strip()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(args, cwd=ROOT, env=env, **pipes)


def finish(args: list[str], **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    process = start(args, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def losses(output: pathlib.Path) -> dict[int, float]:
    lines = (output / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return {e["step"]: e["loss"] for e in entries if e["kind"] == "train"}
