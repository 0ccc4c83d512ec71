"""P-Tuning v2 prefixes and PEFT LoRA directories, to our adapter format and back."""

from pathlib import Path


def is_adapter(src: Path) -> bool:
    return (src / "adapter_config.json").exists()


def only_prefix(tensors) -> bool:
    return all("prefix_encoder." in name for name in tensors)


def from_torch(src, dst, *, base=None, overwrite=False):
    raise NotImplementedError


def is_ours(src: Path) -> bool:
    return (src / "adapter.json").exists()


def to_torch(src, dst, *, overwrite=False):
    raise NotImplementedError
