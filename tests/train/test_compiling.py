"""What XLA's TPU compiler is told: only for chips where it helps, and never against the user."""

import jax
import pytest

from train import compiling
from train.compiling import compiler_options


def test_nothing_is_said_off_tpus():
    assert compiler_options(large_fusions=True) == {}
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        assert compiler_options(large_fusions=True) == {}


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5"])
def test_large_fusions_get_twice_the_fast_memory_unless_the_user_says_how_much(kind, monkeypatch):
    monkeypatch.setattr(compiling, "_device_kind", lambda: kind)
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    limit = {"xla_tpu_scoped_vmem_limit_kib": "32768"}
    assert compiler_options(large_fusions=True) == limit
    assert compiler_options(large_fusions=False) == {}
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=49152")
    assert compiler_options(large_fusions=True) == {}
