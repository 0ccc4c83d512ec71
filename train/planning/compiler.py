"""Asks the TPU compiler, in a child process with bounded time, or the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from glm_jax.errors import UserError
from train.planning import cache, schedule
from train.planning.question import Question

# libtpu then looks for no chip and asks no metadata server; any accelerator type will do.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
}
# Flags for another platform end libtpu; executables for a TPU pod are no use in a cache here.
_UNWANTED = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_COMPILATION_CACHE_DIR")
ROOT = Path(__file__).resolve().parent.parent.parent


def ask(question: Question, *, timeout: float = 900.0, hlo_path: str = "") -> dict[str, Any]:
    """The findings of ``train.planning.child`` for this question, remembered.

    Args:
      timeout: seconds that the compiler may take.
      hlo_path: leave the optimized HLO here (asks the compiler even where the answer is known).

    Raises:
      UserError: the compiler is not installed, fails for another reason than memory, or is slow.
    """
    key = cache.key(question)
    known = None if hlo_path else cache.load(key)
    if known is not None:
        return {**known, "cached": True}
    found = _run(question, timeout, hlo_path)
    if cache.key(question) == key:  # else the source changed while it was compiled
        cache.store(key, found)
    return {**found, "cached": False}


def _run(question: Question, timeout: float, hlo_path: str) -> dict[str, Any]:
    if not cache.version("libtpu"):
        raise UserError("the TPU compiler is not installed: pip install 'jax[tpu]' (no TPU needed)")
    kept = {k: v for k, v in os.environ.items() if k not in _UNWANTED}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    words = [sys.executable, "-m", "train.planning.child", question.to_json(), hlo_path]
    with tempfile.TemporaryDirectory(prefix="glm_jax_plan") as dump:
        own = {"PYTHONPATH": path, "LIBTPU_INIT_ARGS": schedule.flags(dump)}
        try:
            done = subprocess.run(
                [*words, dump], env={**kept, **ENVIRONMENT, **own},
                capture_output=True, text=True, timeout=timeout, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise UserError(
                f"the compiler took more than {timeout:g} s; give it longer with --timeout"
            ) from None
    if done.returncode:
        raise UserError(f"the compiler failed: {_reason(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def _reason(stderr: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return (errors or lines or ["no message"])[-1][:500]
