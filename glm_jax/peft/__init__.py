"""What is trained beside a model: prefixes (P-Tuning v2) and LoRA, their files, and their use."""

from glm_jax.peft.adapter import Adapter, load_adapter, save_adapter
from glm_jax.peft.attach import attach, lora_scale
from glm_jax.peft.prefix import PrefixEncoder

__all__ = ["Adapter", "PrefixEncoder", "attach", "load_adapter", "lora_scale", "save_adapter"]
