"""Our attention beside the alternatives that this machine has, in turns in one run."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from glm_jax.nn.masks import causal_ranges
from glm_jax.ops.attention import Implementation, attention

Attend = Callable[[Array, Array, Array], Float[Array, "B T N H"]]


def ours(implementation: Implementation) -> Attend:
    def attend(q, k, v):
        ranges = causal_ranges(*q.shape[:2])
        return attention(q, k, v, *ranges, implementation=implementation)

    return attend


def splash(q, k, v) -> Array:
    """JAX's TPU kernel for masks that are known when the program is traced."""
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


def jax_attention(implementation: Any) -> Attend:
    def attend(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)

    return attend


def tokamax(q, k, v) -> Array:
    import tokamax  # pyrefly: ignore

    return tokamax.dot_product_attention(q, k, v, is_causal=True)


def alternatives(backend: str) -> dict[str, Attend]:
    """By name; ours first."""
    found = {"chunked": ours("chunked"), "jax-xla": jax_attention("xla")}
    if backend == "tpu":
        return {"tpu": ours("tpu"), "splash": splash, **found}
    if backend == "gpu":
        found["jax-cudnn"] = jax_attention("cudnn")
        if importlib.util.find_spec("tokamax"):
            found["tokamax"] = tokamax
        return found
    return {"reference": ours("reference"), **found}


def measure(
    attends: dict[str, Attend], shape: tuple[int, int, int, int, int], dtype: str, rounds: int
) -> dict[str, dict[str, Any]]:
    """Milliseconds (the median over the rounds) and MiB of temporaries of a forward and backward
    pass over causal rows, or why there are none.

    Args:
      shape: rows, tokens, query heads, key heads, head_dim.
    """
    rows, tokens, heads, kv_heads, head_dim = shape
    keys = jax.random.split(jax.random.key(0), 4)
    draw = lambda key, n: jax.random.normal(key, (rows, tokens, n, head_dim), dtype)
    inputs = tuple(
        draw(key, n) for key, n in zip(keys, (heads, kv_heads, kv_heads, heads), strict=True)
    )
    runs, found = {}, {}
    for name, attend in attends.items():

        def both(q, k, v, d_out, attend=attend):
            out, pull = jax.vjp(attend, q, k, v)
            return out, *pull(d_out)

        try:
            compiled = jax.jit(both).lower(*inputs).compile()
            jax.block_until_ready(compiled(*inputs))
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
    for name, run in runs.items():
        found[name] = {
            "ms": round(statistics.median(seconds[name]) * 1e3, 1),
            "temporaries_mib": round(run.memory_analysis().temp_size_in_bytes / 2**20, 1),
        }
    return found


def default_dtype(backend: str) -> str:
    return "float32" if backend == "cpu" else "bfloat16"
