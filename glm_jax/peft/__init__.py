"""What is trained beside a model: prefixes (P-Tuning v2) and LoRA, their files, and their use."""

from glm_jax.peft.adapter import Adapter, load_adapter, save_adapter
from glm_jax.peft.attach import attach
from glm_jax.peft.lora import (
    Lora,
    add_lora,
    attach_lora,
    has_lora,
    lora_params,
    lora_scale,
    lora_targets,
    merge_lora,
)
from glm_jax.peft.partition import Freezing, combine, partition
from glm_jax.peft.prefix import PrefixEncoder

__all__ = [
    "Adapter",
    "Freezing",
    "Lora",
    "PrefixEncoder",
    "add_lora",
    "attach",
    "attach_lora",
    "combine",
    "has_lora",
    "load_adapter",
    "lora_params",
    "lora_scale",
    "lora_targets",
    "merge_lora",
    "partition",
    "save_adapter",
]
