"""What NVIDIA's compiler makes of the attention kernels for GPUs. No GPU is needed.

    python -m benchmarks.attention.gpu --gpus h100 a100

Wants JAX's plugin for CUDA and NVIDIA's disassembler: pip install 'jax[cuda13]'
nvidia-cuda-nvdisasm. Compiles one layer's attention of one row of bfloat16, forward and backward,
and prints one JSON line (or a table), for each kernel:

  registers, spilled       of a thread; bytes that did not fit and go to memory
  products, instructions   cycles of a core for 1,024 pairs of query and key: of its matrix units at
                           their peak, and of its four schedulers, which issue one instruction a
                           cycle each, in the loop over keys that all queries see
  bound                    what share of the matrix units' peak that leaves, where the two take
                           turns and where one hides the other. Waiting for memory is not in it:
                           this ranks block sizes and says nothing of a clock.
  computed                 pairs that are computed for each that is visible, of causal rows and of
                           packed rows of blank infilling

and the bytes of temporaries beside arguments and results. ``jax``: the instructions and temporaries
of JAX's own kernel for GPUs (jax.experimental.pallas.ops.gpu.attention), causal. The exit status is
1 where more is computed than on a TPU may be (``benchmarks.attention``), or a program is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha
from jax.sharding import SingleDeviceSharding

from benchmarks.attention.efficiency import (
    MOST_CAUSAL,
    MOST_PACKED,
    Ranges,
    causal_row,
    packed_rows,
)
from benchmarks.attention.gpus import GPUS, Gpu, device_of
from benchmarks.attention.programs import heads_of, lower_attention
from benchmarks.attention.sass import Kernel, kernels
from glm_jax.errors import UserError, first_line
from glm_jax.ops.attention.gpu.blocks import Blocks, Cut, choose
from glm_jax.ops.attention.spans import spans
from train.planning.tables import markdown

# The name that the compiled kernel has -> the blocks that it goes by, and FLOPs of its products for
# a pair and a channel.
KERNELS = {
    "forward": ("forward", 4),
    "queries_gradient": ("queries", 6),
    "keys_gradient": ("keys", 8),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compile."""

    gpus: tuple[str, ...] = tuple(GPUS)
    """Of those that benchmarks/attention/gpus.py describes."""
    models: tuple[str, ...] = ("glm-10b", "chatglm-6b", "glm-4-9b")
    """Names of glm_jax.presets, for their heads; or heads as 32x2x96: query heads, key heads,
    channels."""
    length: int = 8192
    """Tokens of the row."""
    infilling: str = "ds_block_10B"
    """Blank-infilling recipe of the packed rows."""
    packed_rows: int = 16
    """How many packed rows are counted."""
    table: bool = False
    """Print the table of docs/kernels.md instead of JSON."""


def compiled(
    gpu: Gpu, heads: tuple[int, int, int], length: int, cut: Cut, dump: Path
) -> dict[str, Any]:
    """What the compiler says of each kernel, and the temporaries; or why it refuses."""
    _clear(dump)
    lowered = lower_attention(device_of(gpu.name), heads, length, "gpu")
    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        return {"error": first_line(error)}
    found = kernels(dump, "range_attention_")
    return {
        "temporaries": memory.temp_size_in_bytes,
        "kernels": {
            name: facts(gpu, getattr(cut, blocks), found[name], flops * heads[2])
            for name, (blocks, flops) in KERNELS.items()
        },
    }


def peer(gpu: Gpu, heads: tuple[int, int, int], length: int, dump: Path) -> dict[str, Any]:
    """The same of JAX's own kernel for GPUs, causal, with every key head repeated."""
    query_heads, kv_heads, head_dim = heads
    here = SingleDeviceSharding(device_of(gpu.name))
    array = lambda n: jax.ShapeDtypeStruct((1, length, n, head_dim), jnp.bfloat16, sharding=here)

    def both(q, k, v, d_out):
        repeated = lambda x: jnp.repeat(x, query_heads // kv_heads, axis=2)
        attend = lambda q, k, v: mha(q, repeated(k), repeated(v), None, causal=True)
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(d_out)

    _clear(dump)
    traced = jax.jit(both).trace(array(query_heads), *[array(kv_heads)] * 2, array(query_heads))
    memory = traced.lower(lowering_platforms=("cuda",)).compile().memory_analysis()
    found, sizes = kernels(dump, "mha_"), BlockSizes.get_default()
    forward, backward = found["forward"], found["backward"]
    pairs = sizes.block_q * sizes.block_k, sizes.block_q_dq * sizes.block_kv_dq
    # Backward is one kernel with a loop for keys and one for queries.
    return {
        "forward": forward.instructions(max(forward.loops), pairs[0]),
        "backward": backward.instructions(sum(backward.loops), pairs[1]),
        "temporaries": memory.temp_size_in_bytes,
    }


def _clear(dump: Path) -> None:
    for old in dump.glob("*.ptx"):
        old.unlink()


def facts(gpu: Gpu, blocks: Blocks, kernel: Kernel, flops: int) -> dict[str, Any]:
    """See the module; ``flops`` are those of one pair."""
    # The shortest loop is the one without a mask.
    instructions = kernel.instructions(min(kernel.loops), blocks.queries * blocks.keys)
    products = flops * 1024 / gpu.products
    return {
        "blocks": blocks._asdict(),
        "registers": kernel.registers,
        "spilled": kernel.spilled,
        "products": round(products, 1),
        "instructions": instructions,
        "bound": [
            round(products / (products + instructions), 2),
            round(products / max(products, instructions), 2),
        ],
    }


def computed(cut: Cut, ranges: Ranges) -> float:
    """Pairs computed over pairs visible, by the most wasteful kernel."""
    start, end = ranges
    visible = int(np.maximum(end.astype(np.int64) - start, 0).sum())

    def pairs(blocks: Blocks, turned: bool) -> int:
        seen = spans(start, end, tile=blocks.queries, unit=blocks.keys)
        seen = seen.turned(start.shape[1] // blocks.keys) if turned else seen
        # The three loops of a kernel.
        loops = [np.maximum(np.asarray(b) - a, 0) for a, b in itertools.pairwise(seen)]
        return int(sum(x.sum() for x in loops)) * blocks.queries * blocks.keys

    most = max(pairs(cut.forward, False), pairs(cut.queries, False), pairs(cut.keys, True))
    return round(most / visible, 4)


def measure(options: Options, dump: Path) -> list[dict[str, Any]]:
    """All of it for each GPU and heads."""
    ranges = {
        "causal": causal_row(options.length),
        "packed": packed_rows(options.infilling, options.packed_rows, options.length),
    }
    results = []
    for gpu in map(GPUS.__getitem__, options.gpus):
        for model in options.models:
            heads = heads_of(model)
            cut = choose(options.length, options.length, heads[2], 2, (gpu.shared - 1) * 1024)
            found = compiled(gpu, heads, options.length, cut, dump)
            seen = {kind: computed(cut, of) for kind, of in ranges.items()}
            found |= {"computed": seen, "jax": peer(gpu, heads, options.length, dump)}
            results.append({"gpu": gpu.name, "heads": model, **found})
            print(f"{gpu.name} {model}: {found.get('error', 'compiled')}", file=sys.stderr)
    return results


def table(results: list[dict[str, Any]]) -> str:
    """A row for each GPU and heads."""
    rows = []
    for result in results:
        row = [result["gpu"], result["heads"]]
        if "error" in result:
            rows.append([*row, f"no: {result['error']}", *[""] * 7])
            continue
        for of in result["kernels"].values():
            spilled = f", {of['spilled']} B spilled" if of["spilled"] else ""
            row.append(
                f"{of['products']:.0f} + {of['instructions']:.0f} "
                f"({of['bound'][0]:.2f} to {of['bound'][1]:.2f}){spilled}"
            )
        theirs = result["jax"]
        mib = [f"{x / 2**20:.0f} MiB" for x in (result["temporaries"], theirs["temporaries"])]
        peers = f"{theirs['forward']:.0f}, {theirs['backward']:.0f}"
        rows.append([*row, *(f"{x:.3f}" for x in result["computed"].values()), peers, *mib])
    header = ["GPU", "heads", "forward", "gradient of queries", "of keys and values", "causal",
              "packed", "JAX's kernel", "temporaries", "JAX's"]  # fmt: skip
    return markdown(header, rows)


def main(options: Options) -> None:
    if unknown := set(options.gpus) - set(GPUS):
        some = " ".join(sorted(unknown))
        raise UserError(f"--gpus {some} is unknown; there are {', '.join(GPUS)}")
    jax.config.update("jax_platforms", "cpu")  # or the plugin looks for a driver
    with tempfile.TemporaryDirectory(prefix="glm_jax_ptx") as dump:
        # Read where the plugin is loaded: before anything runs.
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={dump}"
        results = measure(options, Path(dump))
    if options.table:
        print(table(results))
    else:
        shape = {"length": options.length, "infilling": options.infilling}
        print(json.dumps({"benchmark": "attention.gpu", **shape, "programs": results}))
    wasteful = options.length >= 8192 and any(
        r["computed"]["causal"] > MOST_CAUSAL or r["computed"]["packed"] > MOST_PACKED
        for r in results
    )
    sys.exit(wasteful or any("error" in r for r in results))


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
