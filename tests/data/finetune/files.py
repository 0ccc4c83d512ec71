"""Fine-tuning files as users have them, and loaders over them with tiny tokenizers."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from glm_jax.data import FinetuneData, make_finetune_loader
from tests.chat.models import tiny_config
from tests.text.every import tiny_tokenizer

FAMILIES = ("chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b")


def write(path: Path, *entries) -> str:
    """JSONL of objects; a str is a line as it stands."""
    lines = (e if isinstance(e, str) else json.dumps(e, ensure_ascii=False) for e in entries)
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def talk(i: int) -> dict:
    """A conversation of one to three rounds."""
    rounds = [[f"the file {i} {k}?", "reads a buffer " * (1 + (i + k) % 3)] for k in range(i % 3)]
    return {"prompt": f"closes {i}", "response": f"the socket {i} opens", "history": rounds}


def open_loader(name: str, options: FinetuneData, **kwargs):
    """A loader of a family's tiny tokenizer and config."""
    kwargs = {"split": "train", "batch_size": 4, "seq_len": 96, "seed": 5} | kwargs
    config = tiny_config(name)
    format = "" if config.position == "learned" else name
    loader = make_finetune_loader(options, tiny_tokenizer(name), config, format, **kwargs)
    return contextlib.closing(loader)


def take(name: str, options: FinetuneData, count: int | None = None, **kwargs) -> list[dict]:
    """The first batches; all of them where the loader has an end."""
    with open_loader(name, options, **kwargs) as loader:
        return [batch for batch, _ in zip(loader, range(count or 10**6), strict=False)]


def pieces(batch: dict) -> list[dict]:
    """The examples of packed rows, each as the arrays of its slots."""
    found = []
    for row in range(len(batch["tokens"])):
        starts = batch["k_start"][row]
        used = batch["k_end"][row] > 0
        for start in dict.fromkeys(starts[used].tolist()):
            at = used & (starts == start)
            found.append({k: v[row][..., at] for k, v in batch.items()} | {"start": start})
    return found
