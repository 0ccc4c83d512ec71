"""What is asked of the planner: one program on one slice."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any, Literal, get_args

from glm_jax.config import GLMConfig, preset
from glm_jax.errors import UserError
from glm_jax.nn.compute import Remat
from glm_jax.sharding import MESH_AXES, MeshConfig
from train.planning.topology import Topology, topology

Task = Literal["pretrain", "finetune", "prefill", "decode"]
Method = Literal["lora", "ptuning", "full"]
Quant = Literal["none", "int8", "int4"]
TRAINING = ("pretrain", "finetune")


@dataclasses.dataclass(frozen=True)
class Question:
    """Hashable and JSON; ``mesh`` holds the sizes of data, fsdp, tensor and context."""

    model: str
    topology: str
    task: Task
    mesh: tuple[int, int, int, int]
    length: int
    """Tokens per row in training; cache slots per row in prefill and decode."""
    rows: int
    """Over all chips."""
    remat: Remat = "full"
    quant: Quant = "none"
    """Of the matrices that do not train."""
    param_dtype: str = "float32"
    """Of trained weights and optimizer state; what does not train is bfloat16."""
    method: Method = "full"
    """Of fine-tuning; other training is full as well."""
    large_fusions: bool = True
    """Of pretraining (``train.compiling``); nothing else has them."""

    @property
    def config(self) -> GLMConfig:
        return preset(self.model).replace(quantization=self.quant)

    @property
    def where(self) -> Topology:
        return topology(self.topology)

    @property
    def training(self) -> bool:
        return self.task in TRAINING

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Question:
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "mesh": tuple(fields["mesh"])})

    def command(self) -> str:
        """The command line that asks this."""
        size = "--seq-len" if self.training else "--context"
        words = [
            f"--model {self.model} --topology {self.topology} --task {self.task}",
            *[f"--method {self.method}"] * (self.task == "finetune"),
            f"{size} {self.length}",
            f"--mesh {mesh_text(self.mesh)}",
        ]
        if self.training:
            ways = self.mesh[0] * self.mesh[1]
            words.append(f"--batch-per-chip {self.rows // ways} --remat {self.remat}")
            words += [f"--param-dtype {self.param_dtype}"] * (self.param_dtype != "float32")
            words += ["--no-large-fusions"] * (not self.large_fusions)
        else:
            words.append(f"--batch {self.rows}")
        words += [f"--quant {self.quant}"] * (self.quant != "none")
        return "python -m train.plan " + " ".join(words)


def mesh_text(mesh: tuple[int, ...]) -> str:
    """``data=2,fsdp=32``: axes of more than one device; ``data=1`` where there is one."""
    named = [f"{a}={n}" for a, n in zip(MESH_AXES, mesh, strict=True) if n > 1]
    return ",".join(named) or "data=1"


def parse_mesh(text: str, devices: int) -> tuple[int, int, int, int]:
    """Sizes of the four axes from ``fsdp=64`` or ``data=2,fsdp=-1``.

    Raises:
      UserError: an unknown axis, or sizes that do not multiply to the devices.
    """
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in sizes or not size.lstrip("-").isdigit():
            known = ", ".join(MESH_AXES)
            raise UserError(f"--mesh {text}: {part!r} is not AXIS=SIZE with an axis of {known}")
        sizes[axis] = int(size)
    try:
        data, fsdp, tensor, context = MeshConfig(**sizes).sizes(devices)
    except ValueError as error:
        raise UserError(f"--mesh {text}: {error}") from None
    return data, fsdp, tensor, context


def default_mesh(config: GLMConfig, where: Topology, task: Task) -> tuple[int, int, int, int]:
    """Training: parameters cut over every chip of a slice, slices as replicas. Inference: heads cut
    over as many chips as divide them, and rows over the rest.

    An axis of the mesh is some dimensions of the torus, each as a whole.
    """
    per_slice = where.devices // where.slices
    if task in TRAINING:
        return where.slices, per_slice, 1, 1
    dims = (*where.shape, where.chip.devices_per_chip)
    subsets = itertools.product(*((1, size) for size in dims))
    ways = max(n for n in map(math.prod, subsets) if config.num_heads % n == 0)
    return where.devices // ways, 1, ways, 1


def check(question: Question) -> Question:
    """The question, if a run of it could start.

    Raises:
      UserError: rows that do not divide over the mesh, or more tokens than the model has positions.
    """
    config, ways = question.config, question.mesh[0] * question.mesh[1]
    if question.rows < 1 or question.length < 1:
        raise UserError("rows and tokens per row must be at least 1")
    if question.mesh[0] % question.where.slices:
        raise UserError(
            f"data={question.mesh[0]} does not divide over {question.where.slices} slices: only "
            "data goes over the network between them"
        )
    if question.rows % ways:
        raise UserError(
            f"{question.rows} rows do not divide over data x fsdp = {ways} devices; "
            f"choose --batch or --mesh so that they do"
        )
    shards = question.mesh[3]
    if question.training and shards > 1 and question.length % (2 * shards):
        raise UserError(
            f"rows of {question.length} tokens cannot be cut over context={shards}: the length "
            f"must be a multiple of {2 * shards}"
        )
    if config.position == "learned" and question.length > config.max_seq_len:
        raise UserError(
            f"{question.length} tokens are more than the {config.max_seq_len} learned positions of "
            f"{question.model}"
        )
    if question.training and question.method == "full" and question.quant != "none":
        raise UserError(
            f"--quant {question.quant} is for prefill, decode, lora and ptuning: integers do not "
            "train"
        )
    if question.task not in get_args(Task):
        raise UserError(f"--task {question.task} is unknown")
    return question
