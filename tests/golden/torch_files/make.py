"""Made the files beside it: ``python tests/golden/torch_files/make.py`` with PyTorch 2.13.

They hold what PyTorch really writes, so that the tests read it without PyTorch.
"""

import argparse
import pathlib
import random
from collections import OrderedDict

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
rng = np.random.default_rng(0)


def kinds() -> OrderedDict:
    """Tensors of many types and forms."""
    base = torch.from_numpy(rng.standard_normal((6, 4)).astype(np.float32))
    return OrderedDict(
        float32=base,
        transposed=base.t(),
        rows=base[2:5],
        every_other=base[::2, 1:3],
        parameter=torch.nn.Parameter(base.clone()),
        float64=base.double(),
        float16=base.half(),
        bfloat16=base.bfloat16(),
        int64=torch.arange(5),
        int8=torch.arange(-3, 3, dtype=torch.int8),
        uint8=torch.arange(7, dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
    )


def save_kinds() -> None:
    tensors = kinds()
    torch.save(tensors, HERE / "kinds.bin")
    torch.save(tensors, HERE / "kinds_legacy.bin", _use_new_zipfile_serialization=False)
    arrays = {name: x.detach().float().numpy() for name, x in tensors.items()}
    np.savez(HERE / "kinds.npz", **arrays)


def save_model_parallel(ranks: int = 2) -> None:
    """A GLM cut as THUDM/GLM's model parallelism cuts it (mpu/layers.py, mpu/transformer.py)."""
    width, heads, layers, vocab, places = 8, 4, 2, 24, 9
    draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).half()
    whole = OrderedDict()
    whole["word_embeddings.weight"] = draw(vocab, width)
    whole["transformer.position_embeddings.weight"] = draw(places, width)
    whole["transformer.block_position_embeddings.weight"] = draw(places, width)
    for i in range(layers):
        layer = f"transformer.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            whole[f"{layer}{norm}.weight"], whole[f"{layer}{norm}.bias"] = draw(width), draw(width)
        sizes = {
            "attention.query_key_value": (3 * width, width),
            "attention.dense": (width, width),
            "mlp.dense_h_to_4h": (4 * width, width),
            "mlp.dense_4h_to_h": (width, 4 * width),
        }
        for name, shape in sizes.items():
            whole[f"{layer}{name}.weight"] = draw(*shape)
            whole[f"{layer}{name}.bias"] = draw(shape[0])
    whole["transformer.final_layernorm.weight"] = draw(width)
    whole["transformer.final_layernorm.bias"] = draw(width)

    def part(name: str, x: torch.Tensor, rank: int) -> torch.Tensor:
        if "query_key_value" in name:  # every rank has its heads' q, then k, then v
            q, k, v = x.chunk(3)
            return torch.cat([y.chunk(ranks)[rank] for y in (q, k, v)])
        if name.startswith("word_embeddings") or "dense_h_to_4h" in name:
            return x.chunk(ranks)[rank]
        if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
            return x.chunk(ranks, dim=1)[rank].contiguous()
        return x

    for rank in range(ranks):
        state = {
            "module": OrderedDict((name, part(name, x, rank)) for name, x in whole.items()),
            "optimizer": None,
            "csr_tensor_module_names": set(),
            "skipped_steps": 0,
            "mp_world_size": ranks,
            "args": argparse.Namespace(num_attention_heads=heads, lr=1e-4),
            "random_rng_state": random.getstate(),
            "np_rng_state": np.random.get_state(),  # noqa: NPY002, what old code saved
            "torch_rng_state": torch.get_rng_state()[:16].clone(),
        }
        torch.save(state, HERE / f"mp_rank_{rank:02d}_model_states.pt")
    np.savez(HERE / "mp_merged.npz", **{name: x.numpy() for name, x in whole.items()})


if __name__ == "__main__":
    save_kinds()
    save_model_parallel()
