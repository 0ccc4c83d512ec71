"""Exact matrix products, and with ``-v`` the largest difference of every case at the end."""

import jax
import pytest

from tests.parity.golden import LARGEST


@pytest.fixture(autouse=True)
def exact_matmuls():
    with jax.default_matmul_precision("highest"):
        yield


def pytest_terminal_summary(terminalreporter, config):
    if config.option.verbose > 0 and LARGEST:
        terminalreporter.section("largest differences from the released code")
        for (case, kind), error in sorted(LARGEST.items()):
            terminalreporter.write_line(f"{case:32} {kind:12} {error:.1e}")
