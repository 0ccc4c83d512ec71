"""Every option of ``python -m train.finetune``; defaults depend on the method."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Annotated, Literal

import tyro

from glm_jax.data import FinetuneData
from glm_jax.data.tasks import TaskOptions
from glm_jax.nn import Compute
from train.finetuning.answers import Asking
from train.loop import Intervals
from train.optim import Optimizer
from train.options import Training
from train.schedules import Schedule

Method = Literal["lora", "ptuning", "full", "freeze"]
BaseQuant = Literal["none", "int8", "int4"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning(Training):
    """What every run has that starts from a model: which of its weights are trained, and how.

    Raises:
      ValueError: options that do not fit together.
    """

    ckpt: tyro.conf.Positional[str]
    """Model directory to start from; it is never written to."""
    chat_format: str = ""
    """How conversations are written, such as chatglm3-6b; empty: as the checkpoint says."""
    adapter: str = ""
    """A LoRA or prefix to go on from: a directory of ours, of PEFT, or a released prefix."""
    base_quant: BaseQuant = "none"
    """Keep the frozen matrices of the layers as integers (lora on them is QLoRA)."""
    base_group: int = 0
    """With base-quant: input columns per scale, such as 64; 0: all, as released."""
    merge: bool = False
    """Write the whole model with the LoRA in its weights as well, to OUTPUT/model."""
    lora_rank: int = 8
    """Columns of the two narrow matrices."""
    lora_alpha: float = 32.0
    """The change is scaled by alpha / rank."""
    lora_dropout: float = 0.1
    """Dropout on what goes into the narrow matrices."""
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Matrices that get one: names (q_proj k_proj v_proj o_proj gate_proj up_proj down_proj),
    all-linear, or regular expressions on their paths."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rank-stabilised LoRA)."""
    freeze: str = ""
    """For the method freeze: what stays, such as 'embedding,layers.0-20,layers.*.mlp'."""

    @property
    def trains(self) -> Method:
        """What is trained of the model."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_rank < 1:
            raise ValueError(f"--lora-rank {self.lora_rank} is below 1")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora-dropout {self.lora_dropout} is not in [0, 1)")
        if (self.trains == "freeze") != bool(self.freeze):
            raise ValueError(
                "--freeze names what the method freeze leaves as it is; give both or neither"
            )
        if self.trains in ("full", "freeze"):
            for name in ("base_quant", "adapter", "merge"):
                if getattr(self, name) not in ("none", "", False):
                    option = name.replace("_", "-")
                    raise ValueError(f"--{option} is for lora and ptuning, not for {self.trains}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(Tuning):
    """Fine-tunes a model on your data.

    CKPT is a model directory: of convert.from_torch, of train.pretrain, or of this script.

      python -m train.finetune ckpt/chatglm3-6b --data train.jsonl --output runs/mine
      python -m train.finetune ckpt/chatglm-6b --data train.jsonl --method ptuning --base-quant int4
      python -m train.finetune ckpt/glm-4-9b --data train.jsonl --method full --mesh.fsdp 8

    What a line of train.jsonl may look like: {"prompt": ..., "response": ..., "history": ...},
    {"content": ..., "summary": ...}, {"conversations": [...]}, {"messages": [...]}, {"text": ...}.

    A LoRA or a prefix is written to OUTPUT/adapter, a whole model to OUTPUT/model:

      python -m glm_jax.cli chat ckpt/chatglm3-6b --adapter runs/mine/adapter
      python -m convert.to_torch runs/mine/adapter back/lora        # for PEFT

    The same command goes on where it stopped, bit for bit, also after kill -9. Each method has
    defaults of its own: see --method ptuning --help.
    """

    method: Method = "lora"
    """lora: narrow matrices beside the layers' own, a thousandth of the memory for gradients and
    optimizer; ptuning: keys and values in front of every text (P-Tuning v2); full: every weight;
    freeze: every weight but those that --freeze names."""
    output: str = "runs/finetune"
    """Directory of the run: checkpoints, log.jsonl, tensorboard, and the adapter or model."""
    data: Annotated[FinetuneData, tyro.conf.arg(name="")] = field(default_factory=FinetuneData)
    task: TaskOptions = field(default_factory=TaskOptions)
    asking: Asking = field(default_factory=Asking)
    label_smoothing: float = 0.0
    """Share of a target's weight that all tokens have in common (0.1 in GLM's seq2seq recipes);
    losses are reported without it."""
    prefix_length: int = 128
    """Tokens of a P-Tuning prefix."""
    prefix_projection: bool = False
    """Make the prefix by two layers from a narrower table; they are trained as well."""
    prefix_dropout: float = 0.1
    """Dropout on the prefix's keys and values."""

    @property
    def trains(self) -> Method:
        return self.method

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix_length < 1:
            raise ValueError(f"--prefix-length {self.prefix_length} is below 1")
        for name in ("prefix_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} {getattr(self, name)} is not in [0, 1)")
        self._check_task()
        if self.method == "ptuning" and self.merge:
            raise ValueError("--merge is for lora: a prefix cannot go into the weights")
        if self.method == "ptuning" and self.data.packing:
            raise ValueError(
                "--packing True is not for ptuning: only the first example of a row could see the "
                "prefix"
            )

    def _check_task(self) -> None:
        if not self.task.name:
            return
        if self.task.name == "classify" and (self.method == "ptuning" or self.base_quant != "none"):
            raise ValueError(
                "--task.name classify is for lora, full and freeze on floats: the head is written "
                "with the model"
            )
        for option, wanted in (("replay", self.data.replay), ("metrics", self.asking.metrics)):
            if wanted:
                raise ValueError(f"--{option} is for texts, not for --task.name {self.task.name}")


def _defaults(method: Method, peak: float, *, decay: float = 0.0, **more) -> Finetune:
    steps = 3000
    return Finetune(
        ckpt=tyro.MISSING,
        method=method,
        freeze=tyro.MISSING if method == "freeze" else "",
        steps=steps,
        batch_size=4,
        seq_len=768,
        optimizer=Optimizer(
            schedule=Schedule(peak, steps, 0.03, 0.1, "cosine"),
            weight_decay=decay,
            beta2=0.999,
            eps=1e-8,
        ),
        every=Intervals(log=10, heldout=500, save=500),
        compute=Compute(dtype="bfloat16", remat="full"),
        **more,
    )


DEFAULTS: dict[str, Finetune] = {
    "lora": _defaults("lora", 5e-4),
    "ptuning": _defaults("ptuning", 1e-2, data=FinetuneData(packing=False)),
    "full": _defaults("full", 5e-5),
    "freeze": _defaults("freeze", 5e-5),
}
"""Learning rates of the releases: ChatGLM-6B's train_chat.sh, GLM-4's lora.yaml and sft.yaml."""
