"""NVIDIA's compiler takes the attention kernels, where it is installed; how its listing is read."""

import importlib.util
import json
import subprocess
import sys

import pytest

from benchmarks.attention.sass import Kernel, product_loops
from tests.conftest import ROOT

# Two stretches that jump back: one with a product, one without; and a jump forwards.
LISTING = """
        .text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDS R2, [R3] ;
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0030*/                   ISETP.GE.AND P0, PT, R9, R10, PT ;
        /*0040*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0050*/                   IADD3 R9, R9, 0x1, RZ ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
        /*0070*/                   BRA `(.L_x_2) ;
.L_x_2:
        /*0080*/                   EXIT ;
"""


def run(*words):
    command = [sys.executable, "-m", "benchmarks.attention.gpu", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_loops_with_products_are_found():
    assert product_loops(LISTING) == [4]
    kernel = Kernel(warps=8, registers=100, spilled=0, loops=(4,))
    assert kernel.instructions(4, 64) == 4 * 8 / 4 * 1024 / 64


def test_an_unknown_gpu_is_named():
    done = run("--gpus", "h101")
    assert done.returncode == 2 and "--gpus h101 is unknown; there are a100" in done.stderr


@pytest.mark.skipif(
    all(importlib.util.find_spec(f"jax_cuda{n}_plugin") is None for n in (12, 13)),
    reason="JAX's plugin for CUDA is not installed",
)
def test_nvidias_compiler_takes_the_kernels():
    done = run("--gpus", "h100", "a6000", "--models", "4x2x128", "--length", "512")
    found = json.loads(done.stdout)["programs"]
    assert done.returncode == 0 and len(found) == 2
    for program in found:
        assert set(program["kernels"]) == {"forward", "queries_gradient", "keys_gradient"}
        assert all(kernel["spilled"] <= 64 for kernel in program["kernels"].values())
