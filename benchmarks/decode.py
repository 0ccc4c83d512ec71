"""Generation by us and by Hugging Face, in turns in one run.

    python -m benchmarks.decode --preset bench-120m --batch 1 --prompt 128 --new 128 --peer torch

Both read the same random prompt and write the same number of tokens greedily, with random weights:
ours through the programs behind ``glm_jax.generate``, theirs with GlmForCausalLM, once with its
dynamic cache and once compiled over its static one; the faster of the two counts, for reading and
for writing. One JSON line: tokens per second of each, ``ratio`` (ours over theirs, the median over
the rounds) and the share of this machine's memory bandwidth that our decoding reaches, counting
every weight once a step.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import glm_jax
from glm_jax import nn
from glm_jax.config import GLMConfig, preset
from glm_jax.text.decoding_loop import bucket, prefill, write
from glm_jax.text.layout import lay_out
from glm_jax.text.prepare import decode_compute, prepare
from glm_jax.text.sampling import RowSampling


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    preset: str = "bench-120m"
    """A causal model of glm_jax.presets."""
    batch: int = 1
    """Rows."""
    prompt: int = 128
    """Tokens per prompt."""
    new: int = 128
    """Tokens written per row."""
    dtype: Literal["float32", "bfloat16", "int8", "int4"] = "float32"
    """Type of the weights; with integers everything else is float32."""
    group: int = 0
    """Columns per scale of integer weights; 0: one scale per row."""
    cache_dtype: Literal["same", "int8"] = "same"
    """Type of our keys and values."""
    peer: Literal["torch", "ours", "none"] = "torch"
    """Transformers' GlmForCausalLM (float32 where the weights are integers), or our own float32."""
    rounds: int = 5
    """Turns of each; the medians count."""


class Seconds(NamedTuple):
    """Of one turn."""

    prefill: float
    decode: float


Turn = Callable[[], Seconds]


def our_turn(options: Options, config: GLMConfig, prompt: np.ndarray) -> tuple[Turn, int]:
    """A function that reads and writes once, and the bytes of weights that a step reads."""
    integers = options.dtype in ("int8", "int4")
    dtype = jnp.dtype("float32" if integers else options.dtype)
    model = jax.jit(lambda key: nn.GLM(config, key, param_dtype=dtype))(jax.random.key(0))
    if integers:
        model = glm_jax.quantize(model, options.dtype, options.group)
    model = prepare(model)
    compute = decode_compute(model, None)
    if options.cache_dtype == "int8":
        compute = dataclasses.replace(compute, cache_dtype="int8")
    rows = [lay_out(row.tolist(), config) for row in prompt]
    limit = jnp.full(len(rows), options.new, jnp.int32)
    sampling = RowSampling.make(len(rows), vocab_limit=config.vocab_size)
    no_stops = jnp.full(8, -1, jnp.int32)

    def run() -> Seconds:
        begin = time.perf_counter()
        state = prefill(model, rows, bucket(options.new, 16), compute)
        jax.block_until_ready(state)
        middle = time.perf_counter()
        state = write(
            model, state, sampling, no_stops, limit, jnp.int32(options.new), compute=compute
        )
        jax.block_until_ready(state)
        return Seconds(middle - begin, time.perf_counter() - middle)

    read = jax.tree.leaves((model.layers, model.final_norm, model.head_weight))
    return run, sum(x.nbytes for x in read)


def their_turns(options: Options, config: GLMConfig, prompt: np.ndarray) -> dict[str, Turn]:
    """The same with Transformers, by the kind of its cache."""
    import torch
    from transformers import DynamicCache, GlmConfig, GlmForCausalLM, StaticCache

    torch.manual_seed(0)
    hf = config.to_hf("transformers")
    hf.pop("architectures")
    hf_config = GlmConfig(**hf, attn_implementation="sdpa")
    model = GlmForCausalLM(hf_config).eval()
    model = model.to(torch.bfloat16 if options.dtype == "bfloat16" else torch.float32)
    ids = torch.from_numpy(prompt.astype(np.int64))
    length = options.prompt + options.new
    compiled = torch.compile(model, dynamic=False)

    def turn(forward, make_cache) -> Turn:
        def step(forward, tokens, start, cache):
            at = torch.arange(start, start + tokens.shape[1])
            out = forward(
                input_ids=tokens, position_ids=at[None], past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            return out.logits[:, -1].argmax(-1, keepdim=True)

        @torch.no_grad()
        def run() -> Seconds:
            cache = make_cache()
            begin = time.perf_counter()
            token = step(model, ids, 0, cache)
            middle = time.perf_counter()
            for i in range(options.new):
                token = step(forward, token, options.prompt + i, cache)
            return Seconds(middle - begin, time.perf_counter() - middle)

        return run

    static = lambda: StaticCache(config=hf_config, max_cache_len=length)
    return {
        "dynamic": turn(model, lambda: DynamicCache(config=hf_config)),
        "static-compiled": turn(compiled, static),
    }


def memory_bandwidth(size: int = 2**29) -> Callable[[], float]:
    """A function that reads ``size`` bytes once and returns bytes per second."""
    width = 2048
    weight = jnp.ones((size // 4 // width, width), jnp.float32)
    read = jax.jit(lambda x, w: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ()))))
    x = jnp.ones((1, width), jnp.float32)
    jax.block_until_ready(read(x, weight))

    def run() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(read(x, weight))
        return size / (time.perf_counter() - begin)

    return run


def compare(
    options: Options, ours: list[Seconds], theirs: dict[str, list[Seconds]], part: str
) -> dict:
    """Tokens per second of one part, and the median ratio over the rounds."""
    tokens = options.batch * (options.prompt if part == "prefill" else options.new)
    seconds = {name: [getattr(s, part) for s in turns] for name, turns in theirs.items()}
    mine = [getattr(s, part) for s in ours]
    result: dict = {"ours": round(tokens / statistics.median(mine), 1)}
    if seconds:
        best = min(seconds, key=lambda name: statistics.median(seconds[name]))
        result["theirs"] = round(tokens / statistics.median(seconds[best]), 1)
        result["their_best"] = best
        pairs = zip(seconds[best], mine, strict=True)
        result["ratio"] = round(statistics.median(t / o for t, o in pairs), 3)
    return result


def main(options: Options) -> None:
    config = preset(options.preset)
    prompt = np.random.default_rng(0).integers(
        0, config.vocab_size, (options.batch, options.prompt), dtype=np.int64
    )
    ours, read = our_turn(options, config, prompt)
    theirs: dict[str, Turn] = {}
    if options.peer == "torch":
        theirs = their_turns(options, config, prompt)
    elif options.peer == "ours":
        plain = dataclasses.replace(options, dtype="float32")
        theirs = {"float32": our_turn(plain, config, prompt)[0]}
    bandwidth = memory_bandwidth()
    for run in (ours, *theirs.values()):  # compiles, warms up
        run()
        run()
    mine: list[Seconds] = []
    other: dict[str, list[Seconds]] = {name: [] for name in theirs}
    rates = []
    for _ in range(options.rounds):
        rates.append(max(bandwidth() for _ in range(5)))
        mine.append(ours())
        for name, run in theirs.items():
            other[name].append(run())
    step = statistics.median(s.decode for s in mine) / options.new
    decode = compare(options, mine, other, "decode")
    decode["gb_per_s"] = round(read / step / 1e9, 1)
    decode["of_bandwidth"] = round(read / step / statistics.median(rates), 3)
    result = {
        "benchmark": "decode",
        **{k: v for k, v in vars(options).items() if k != "rounds"},
        "prefill": compare(options, mine, other, "prefill"),
        "decode": decode,
        "memory_gb_per_s": round(statistics.median(rates) / 1e9, 1),
        "load": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
