"""The project's own programs, lowered for devices that need not exist."""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from glm_jax import sharding
from train.planning.inference import decode, prefill
from train.planning.program import Program
from train.planning.question import Question
from train.planning.training import finetune, pretrain

TASKS = {"pretrain": pretrain, "finetune": finetune, "prefill": prefill, "decode": decode}


def lower(question: Question, devices: Any) -> Program:
    """The question's program for these devices, under its mesh."""
    mesh = _mesh(question, devices)
    jax.random.key(0)  # made outside the mesh, so that no described device is asked to make it
    with jax.set_mesh(mesh):
        return TASKS[question.task](question, mesh)


def _mesh(question: Question, devices: Any) -> Mesh:
    """The project's mesh; of several slices, ``data`` goes over the slices first."""
    slices = question.where.slices
    if slices == 1:
        return sharding.make_mesh(sharding.MeshConfig(*question.mesh), devices)
    data, *inside = question.mesh
    grid = mesh_utils.create_hybrid_device_mesh(
        (data // slices, *inside), (slices, 1, 1, 1), devices=devices
    )
    return Mesh(grid, sharding.MESH_AXES)
