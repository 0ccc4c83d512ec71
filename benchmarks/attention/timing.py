"""Our attention beside the alternatives that this machine has, in turns in one run."""

from __future__ import annotations

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from benchmarks.attention.efficiency import Ranges
from glm_jax.ops.attention import Implementation, attention
from glm_jax.ops.attention.reference import visible

Rows = Literal["causal", "packed"]
# attend(q, k, v, k_start, k_end)
Attend = Callable[[Array, Array, Array, Array, Array], Float[Array, "B T N H"]]


def ours(implementation: Implementation) -> Attend:
    return functools.partial(attention, implementation=implementation)


def splash(q, k, v, k_start, k_end) -> Array:
    """JAX's TPU kernel for masks that are known when the program is traced: causal."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (_, length, heads, head_dim), block = q.shape, min(1024, q.shape[1])
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=min(512, block),
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=min(512, block),
        use_fused_bwd_kernel=True,
    )  # fmt: skip
    masks = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
    kernel = splash.make_splash_mha(masks, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    turn = lambda x: x.transpose(0, 2, 1, 3)
    return turn(jax.vmap(kernel)(turn(q * head_dim**-0.5), turn(k), turn(v)))


def library(attend: Callable[..., Array], rows: Rows) -> Attend:
    """A library's attention: told that rows are causal, or with a mask of all pairs."""

    def call(q, k, v, k_start, k_end):
        if rows == "causal":
            return attend(q, k, v, is_causal=True)
        return attend(q, k, v, mask=mask(k_start, k_end, k.shape[1]))

    return call


def mask(k_start: Int[Array, "B T"], k_end: Int[Array, "B T"], keys: int) -> Bool[Array, "B 1 T S"]:
    return visible(k_start, k_end, jnp.arange(keys))[:, 0]


def alternatives(backend: str, rows: Rows) -> dict[str, Attend]:
    """By name; ours, which the others are compared with, first."""
    of_jax = lambda name: library(
        functools.partial(jax.nn.dot_product_attention, implementation=name), rows
    )
    found = {"chunked": ours("chunked"), "jax-xla": of_jax("xla")}
    if backend == "tpu":
        return {"tpu": ours("tpu"), **({"splash": splash} if rows == "causal" else {}), **found}
    if backend == "gpu":
        found = {"gpu": ours("gpu"), **found, "jax-cudnn": of_jax("cudnn")}
        if importlib.util.find_spec("tokamax"):
            import tokamax  # pyrefly: ignore

            found["tokamax"] = library(tokamax.dot_product_attention, rows)
        return found
    return {"reference": ours("reference"), **found}


def measure(
    attends: dict[str, Attend],
    shape: tuple[int, int, int, int, int],
    dtype: str,
    rounds: int,
    ranges: Ranges,
) -> dict[str, dict[str, Any]]:
    """Of a forward and backward pass milliseconds (the median over the rounds), MiB of temporaries
    and how far the output is from the first's, over its largest number; or why there are none.

    Args:
      shape: rows, tokens, query heads, key heads, head_dim.
    """
    rows, tokens, heads, kv_heads, head_dim = shape
    keys = jax.random.split(jax.random.key(0), 4)
    draw = lambda key, n: jax.random.normal(key, (rows, tokens, n, head_dim), dtype)
    q, k, v, d_out = (
        draw(key, n) for key, n in zip(keys, (heads, kv_heads, kv_heads, heads), strict=True)
    )
    inputs = q, k, v, *map(jnp.asarray, ranges), d_out
    runs, found, outputs = {}, {}, {}
    for name, attend in attends.items():

        def both(q, k, v, k_start, k_end, d_out, attend=attend):
            out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, k_start, k_end), q, k, v)
            return out, *pull(d_out)

        try:
            compiled = jax.jit(both).lower(*inputs).compile()
            outputs[name] = np.asarray(compiled(*inputs)[0], np.float32)
        except (jax.errors.JaxRuntimeError, ValueError, RuntimeError, NotImplementedError) as e:
            found[name] = {"refused": str(e).split("\n")[0][:200]}
            continue
        runs[name] = compiled
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(*inputs))
            seconds[name].append(time.perf_counter() - begin)
    # Of queries that see something: for the others libraries give any number.
    seen = ranges[0] < ranges[1]
    first = next(iter(outputs.values()))[seen] if outputs else None
    for name, run in runs.items():
        found[name] = {
            "ms": round(statistics.median(seconds[name]) * 1e3, 1),
            "temporaries_mib": round(run.memory_analysis().temp_size_in_bytes / 2**20, 1),
            "difference": float(f"{abs(outputs[name][seen] - first).max() / abs(first).max():.1e}"),
        }
    return found


def default_dtype(backend: str) -> str:
    return "float32" if backend == "cpu" else "bfloat16"
