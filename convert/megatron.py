"""THUDM/GLM's own training checkpoints: ``mp_rank_XX_model_states.pt``, one per rank.

Megatron's rules (THUDM/GLM mpu/layers.py, mpu/transformer.py): the word embedding, the fused
queries, keys and values, and the MLP's first matrix are cut by rows, the two matrices that write to
the residual stream by columns; all else is on every rank. The fused matrix of a rank is
[q | k | v] of that rank's heads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convert.readers.pickled import Inert, Pickled, read_pickled
from convert.tensors import Merged, Tensor
from glm_jax.errors import UserError
from glm_jax.presets import PRESETS

_BY_ROWS = re.compile(r"word_embeddings\.weight$|mlp\.dense_h_to_4h\.(weight|bias)$")
_BY_COLUMNS = re.compile(r"(attention\.dense|mlp\.dense_4h_to_h)\.weight$")
_FUSED = re.compile(r"query_key_value\.(weight|bias)$")


def read_model_parallel(
    paths: Sequence[Path], config: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config, in THUDM's Hugging Face form, and the merged tensors.

    Args:
      config: ``config.json`` where there is one; otherwise the shapes tell.

    Raises:
      UserError: ranks are missing or do not agree.
    """
    numbers = [int(path.name[8:10]) for path in paths]
    if numbers != list(range(len(paths))):
        missing = sorted(set(range(max(numbers) + 1)) - set(numbers))
        raise UserError(f"{paths[0].parent} lacks mp_rank_{missing[0]:02d}_model_states.pt")
    ranks = [read_pickled(path) for path in paths]
    said = ranks[0].content.get("mp_world_size")
    if isinstance(said, int) and said != len(ranks):
        raise UserError(f"{paths[0]} is one of {said} ranks, but {len(ranks)} are there")
    names = list(ranks[0].tensors)
    for path, rank in zip(paths, ranks, strict=True):
        if odd := set(rank.tensors) ^ set(names):
            raise UserError(f"{path} does not hold what {paths[0].name} holds: {sorted(odd)[0]}")
    tensors = {
        name.removeprefix("module."): _merge(name, [rank.tensors[name] for rank in ranks])
        for name in names
    }
    return config or _config(ranks[0], tensors, paths[0]), tensors


def _merge(name: str, parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if any(part.shape[:1] != parts[0].shape[:1] or part.dtype != parts[0].dtype for part in parts):
        raise UserError(f"{parts[-1].file}: {name} has another shape or type than on rank 0")
    count = parts[0].shape[0]
    ranks = range(len(parts))
    if _FUSED.search(name):
        third = count // 3
        blocks = tuple((r, t * third, (t + 1) * third) for t in range(3) for r in ranks)
        return Merged(parts, blocks)
    if _BY_ROWS.search(name):
        return Merged(parts, tuple((r, 0, count) for r in ranks))
    if _BY_COLUMNS.search(name):
        return Merged(parts, None)
    return parts[0]


def _config(rank: Pickled, tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    shape = lambda suffix: next((x.shape for n, x in tensors.items() if n.endswith(suffix)), None)
    words, places = shape("word_embeddings.weight"), shape(".position_embeddings.weight")
    if words is None or places is None:
        raise UserError(f"{path} holds no GLM: no word_embeddings or position_embeddings")
    layers = {m[1] for n in tensors if (m := re.search(r"\.layers\.(\d+)\.", n))}
    args = rank.content.get("args")
    args = args.state if isinstance(args, Inert) and isinstance(args.state, dict) else {}
    heads = args.get("num_attention_heads") or _heads(len(layers), words[1])
    if heads is None:
        raise UserError(
            f"{path}: {len(layers)} layers of width {words[1]} are no released GLM, and the file "
            "does not say its number of heads; add a config.json with num_attention_heads"
        )
    return {
        "model_type": "glm",
        "vocab_size": words[0],
        "num_layers": len(layers),
        "hidden_size": words[1],
        "num_attention_heads": heads,
        "max_sequence_length": places[0] - 1,
    }


def _heads(layers: int, width: int) -> int | None:
    sizes = {(c.num_layers, c.embed_dim): c.num_heads for c in PRESETS.values()
             if c.position == "learned"}  # fmt: skip
    return sizes.get((layers, width))
