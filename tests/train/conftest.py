"""Fixtures of the tests that train."""

import jax
import pytest

from glm_jax.sharding import make_mesh


@pytest.fixture(scope="module")
def few_devices():
    """Fine-tuning in this process takes as many of the devices as its --mesh.data says, not all:
    where the mesh is not the point, programs for one compile and run in less time."""
    with pytest.MonkeyPatch.context() as patch:
        few = lambda config: make_mesh(config, jax.devices()[: config.data])
        patch.setattr("train.finetuning.base.make_mesh", few)
        yield
