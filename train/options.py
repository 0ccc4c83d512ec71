"""The options of training and of ``python -m train.pretrain``, as frozen dataclasses with help."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Literal

from glm_jax.config import GLMConfig
from glm_jax.config import preset as model_preset
from glm_jax.data import DataConfig
from glm_jax.nn import Compute
from glm_jax.sharding import MeshConfig
from glm_jax.special import SpecialTokens
from train.distributed import Hosts
from train.loop import Intervals
from train.optim import Optimizer


@dataclasses.dataclass(frozen=True)
class Model:
    """Which network. Its vocabulary is the tokenizer's."""

    preset: str = "glm-base"
    """A model of glm_jax.presets, such as glm-base, glm-10b or glm-4-9b."""
    num_layers: int | None = None
    """Layers, where not the preset's."""
    embed_dim: int | None = None
    """Width, where not the preset's; the MLP is then four times as wide unless set too."""
    num_heads: int | None = None
    """Attention heads, where not the preset's; the head size is width / heads."""
    mlp_dim: int | None = None
    """Width of the MLP, where not the preset's."""
    max_seq_len: int | None = None
    """Rows of the learned position tables, where not the preset's."""
    dropout: float | None = None
    """All three dropouts (embedding, attention, hidden), where not the preset's."""

    def config(self, vocab_size: int, special: SpecialTokens) -> GLMConfig:
        """The network for a tokenizer.

        Raises:
          ValueError: an unknown preset or sizes that do not fit together.
        """
        try:
            base = model_preset(self.preset)
        except KeyError as error:
            raise ValueError(error.args[0]) from None
        changes: dict = {"vocab_size": vocab_size, "special": special, "hf_extras": ""}
        changes["stop_ids"] = (special.eop,) if special.eop is not None else ()
        for name in ("num_layers", "embed_dim", "mlp_dim", "max_seq_len"):
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)
        if self.num_heads is not None:
            changes |= {"num_heads": self.num_heads, "num_kv_heads": self.num_heads}
        width, heads = changes.get("embed_dim", base.embed_dim), self.num_heads or base.num_heads
        if self.embed_dim is not None or self.num_heads is not None:
            if heads < 1 or width % heads:
                raise ValueError(f"num_heads {heads} does not divide embed_dim {width}")
            changes["head_dim"] = width // heads
        if self.embed_dim is not None and self.mlp_dim is None:
            changes["mlp_dim"] = 4 * width
        if self.dropout is not None:
            names = ("embed_dropout", "attention_dropout", "hidden_dropout")
            changes |= dict.fromkeys(names, self.dropout)
        return base.replace(**changes)


@dataclasses.dataclass(frozen=True)
class MultiTask:
    """A second stream of text mixed in (GLM-130B: 5 % multi-task data)."""

    ratio: float = 0.0
    """Chance that a step takes its whole batch from this stream."""
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}; it is a chance between 0 and 1")


@dataclasses.dataclass(frozen=True)
class Training:
    """What every run has, whatever it trains.

    Raises:
      ValueError: a count below 1, or micro-batches that do not divide the batch.
    """

    output: str = "runs/out"
    """Directory of the run: checkpoints, log.jsonl, tensorboard, and what was trained."""
    shared: str = ""
    """Where checkpoints and the final model go instead: a place that all hosts of a pod see, such
    as gs://bucket/run."""
    steps: int = 1000
    """Batches to train on. Does not move the schedule: see optimizer.schedule.decay-steps."""
    batch_size: int = 8
    """Rows of one update, over all devices and micro-batches."""
    seq_len: int = 256
    """Tokens per row."""
    accumulate: int = 1
    """Micro-batches per update; the mean is over tokens, however they fall on micro-batches."""
    seed: int = 0
    """Fixes initial weights, data order, masking and dropout."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of trained weights and optimizer state (compute.dtype is that of the arithmetic)."""
    heldout_batches: int = 8
    """Batches per objective of a held-out evaluation."""
    keep: int = 3
    """Checkpoints to keep."""
    max_minutes: float = 0.0
    """Where steps would take longer on this machine, train for fewer and shorten the schedule in
    proportion; decided once, at the start, from the speed of a few trial steps. 0: no limit."""
    profile_steps: int = 0
    """Steps to write an XProf trace of below output/profile, soon after the start; see
    docs/pods.md."""
    distributed: bool = False
    """Join the other hosts first, as JAX finds them on Cloud TPU, GKE, Slurm or under MPI."""
    hosts: Hosts = field(default_factory=Hosts)
    optimizer: Optimizer = field(default_factory=Optimizer)
    every: Intervals = field(default_factory=Intervals)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "seq_len", "accumulate", "heldout_batches", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is below 1")
        if self.profile_steps < 0:
            raise ValueError(f"--profile-steps {self.profile_steps} is below 0")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"--accumulate {self.accumulate} does not divide --batch-size {self.batch_size}"
            )


@dataclasses.dataclass(frozen=True)
class Pretrain(Training):
    """Pretrains a GLM by blank infilling.

    Give a preset and change what you like; every default below is the chosen preset's:

      python -m train.pretrain --preset demo
      python -m train.pretrain --preset glm-10b --mesh.fsdp 64 --data.source 'files:corpus/*.zst'

    The same command goes on where it stopped, bit for bit: after SIGTERM (which saves and exits
    with status 0), after a crash, after kill -9. Another --output starts anew.
    """

    preset: str = "demo"
    """Where the defaults come from: demo, tiny (seconds, for trying things out), or the recipe of a
    release: glm-base, glm-large, glm-roberta-large, glm-large-chinese, glm-10b, glm-10b-longer,
    glm-10b-chinese, glm-10b-chinese-longer."""
    output: str = "runs/demo"
    """Directory of the run: checkpoints, log.jsonl, tensorboard, tokenizer, and the final model."""
    tokenizer: str = ""
    """Directory with a tokenizer; empty: one is trained on the data first and kept in output."""
    vocab_size: int = 8192
    """Vocabulary of a tokenizer that has to be trained."""
    large_fusions: bool = True
    """On v5e and v5p: give XLA's fusions 32 MiB of a core's fast memory instead of 16. By the
    compiler's estimate a step takes an eighth less time; compiling takes two to four times as
    long."""
    model: Model = field(default_factory=Model)
    data: DataConfig = field(default_factory=DataConfig)
    multitask: MultiTask = field(default_factory=MultiTask)
