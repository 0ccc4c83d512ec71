"""Our training step and Hugging Face's, in turns in one run.

    python -m benchmarks.train --preset bench-120m --batch 4 --seq 512 --dtype float32 --peer torch

Both do the same work on the same random tokens: forward, cross entropy, backward, gradient clipping
and AdamW on every parameter of a causal language model. One JSON line: tokens per second of each
and ``ratio``, ours over theirs, the median over the rounds.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from glm_jax import nn
from glm_jax.config import GLMConfig, flops_per_token, preset
from train.trainer import init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    preset: str = "bench-120m"
    """A causal model of glm_jax.presets."""
    batch: int = 4
    """Rows."""
    seq: int = 512
    """Tokens per row."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the arithmetic; weights are float32."""
    peer: Literal["torch", "torch-compile", "none"] = "torch"
    """Transformers' GlmForCausalLM, eager or compiled."""
    steps: int = 3
    """Steps per turn."""
    rounds: int = 5
    """Turns of each; the medians count."""
    unroll: int = 0
    """Layers per step of our scan; 0: all (faster on a CPU), 1: a plain scan."""
    remat: nn.compute.Remat = "none"
    """Our rematerialisation."""
    loss_tokens: int = 1024
    """Tokens whose logits exist at one time in our loss."""
    attention: nn.compute.Implementation = "auto"
    """Our attention."""
    threads: int = 0
    """Threads for torch; 0: its default."""


def our_step(options: Options, config: GLMConfig, tokens: np.ndarray) -> Callable[[], float]:
    """A function that makes one training step and returns its loss."""
    compute = nn.Compute(
        dtype=options.dtype,
        remat=options.remat,
        attention=options.attention,
        loss_chunk=options.loss_tokens,
        unroll=options.unroll or config.num_layers,
    )
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.1))
    k_start, k_end = nn.causal_ranges(*tokens.shape)
    batch = {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "targets": jnp.asarray(np.roll(tokens, -1, axis=1), jnp.int32),
        "loss_weights": jnp.ones(tokens.shape, jnp.float32).at[:, -1].set(0),
        "positions": jnp.broadcast_to(
            jnp.arange(tokens.shape[1]), (len(tokens), 2, tokens.shape[1])
        ),
        "k_start": k_start,
        "k_end": k_end,
    }

    def loss_fn(model, batch, key):
        del key
        return nn.lm_loss(model, batch, compute=compute)[0], {}

    step = make_train_step(loss_fn, tx, schedule=lambda t: 1e-4)
    state = [jax.jit(lambda k: init_state(lambda k: nn.GLM(config, k), tx, k))(jax.random.key(0))]

    def run() -> float:
        state[0], metrics = step(state[0], batch)
        return float(metrics["loss"])

    return run


def their_step(options: Options, config: GLMConfig, tokens: np.ndarray) -> Callable[[], float]:
    """The same with Transformers' GlmForCausalLM (sdpa attention) and torch's fused AdamW."""
    import torch
    from transformers import GlmConfig, GlmForCausalLM

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    hf = config.to_hf("transformers")
    hf.pop("architectures")
    model = GlmForCausalLM(GlmConfig(**hf, use_cache=False, attn_implementation="sdpa")).train()
    forward = torch.compile(model) if options.peer == "torch-compile" else model
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    ids = torch.from_numpy(tokens.astype(np.int64))
    lower = options.dtype == "bfloat16"

    def run() -> float:
        adamw.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        return float(loss)

    return run


def turn(run: Callable[[], float], steps: int) -> float:
    """Seconds per step."""
    begin = time.perf_counter()
    for _ in range(steps):
        run()
    return (time.perf_counter() - begin) / steps


def main(options: Options) -> None:
    config = preset(options.preset)
    tokens = np.random.default_rng(0).integers(
        0, config.vocab_size, (options.batch, options.seq), dtype=np.int64
    )
    sides = {"ours": our_step(options, config, tokens)}
    if options.peer != "none":
        sides["theirs"] = their_step(options, config, tokens)
    first_loss = {name: [run(), run()][0] for name, run in sides.items()}  # compiles, warms up
    seconds = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, run in sides.items():
            seconds[name].append(turn(run, options.steps))
    tokens_per_s = {n: tokens.size / statistics.median(s) for n, s in seconds.items()}
    flops = flops_per_token(config, options.seq)
    result = {
        "benchmark": "train",
        **{k: v for k, v in vars(options).items() if k not in ("steps", "threads")},
        "first_loss": {name: round(x, 4) for name, x in first_loss.items()},
        "tokens_per_s": {name: round(x, 1) for name, x in tokens_per_s.items()},
        "model_gflops_per_s": {n: round(x * flops / 1e9, 1) for n, x in tokens_per_s.items()},
    }
    if "theirs" in seconds:
        pairs = zip(seconds["theirs"], seconds["ours"], strict=True)
        result["ratio"] = round(statistics.median(t / o for t, o in pairs), 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
