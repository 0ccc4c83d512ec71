"""What the attention kernel computes beyond what is visible, and what attention costs here.

    python -m benchmarks.attention

One JSON line. ``efficiency``: pairs of query and key that the TPU kernel computes for each pair
that is visible, by rows and by model, the worst of the chips and of both passes; this is counted
and needs no TPU. ``timings``: a forward and backward pass over causal rows, and over packed rows of
blank infilling, in this machine's implementations: our kernel and splash attention on a TPU, our
kernel, cuDNN and tokamax on a GPU, XLA on a CPU. The exit status is 1 where the TPU kernel computes
more than it may. What our kernels for GPUs are made into, on any machine: benchmarks.attention.gpu.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import tyro

from benchmarks.attention import timing
from benchmarks.attention.efficiency import (
    MOST_CAUSAL,
    MOST_PACKED,
    Ranges,
    causal_row,
    packed_rows,
    worst,
)
from benchmarks.attention.programs import MODELS, heads_of


@dataclasses.dataclass(frozen=True)
class Options:
    """What to count and to measure."""

    models: tuple[str, ...] = MODELS
    """Names of glm_jax.presets, for their heads; the last is measured."""
    lengths: tuple[int, ...] = (8192, 32768, 131072)
    """Causal rows to count."""
    infilling: str = "ds_block_10B"
    """Blank-infilling recipe of the packed rows: a name in glm_jax.data.INFILLING_PRESETS."""
    packed_length: int = 8192
    """Slots of a packed row."""
    packed_rows: int = 16
    """How many of them."""
    tokens: int = 2048
    """Of the measured rows; 0: measure nothing."""
    rows: int = 1
    """Measured at a time."""
    rounds: int = 5
    """Turns of each; the medians count."""


def main(options: Options) -> None:
    efficiency = {f"causal {n}": worst(options.models, causal_row(n)) for n in options.lengths}
    most = dict.fromkeys(efficiency, MOST_CAUSAL)
    if options.packed_rows:
        name = f"packed {options.packed_length}"
        ranges = packed_rows(options.infilling, options.packed_rows, options.packed_length)
        efficiency[name], most[name] = worst(options.models, ranges), MOST_PACKED
    backend = jax.default_backend()
    result = {
        "benchmark": "attention",
        "infilling": options.infilling,
        "packed_rows": options.packed_rows,
        "efficiency": efficiency,
        "at_most": most,
        "backend": backend,
        "device": jax.devices()[0].device_kind,
    }
    if options.tokens:
        shape = (options.rows, options.tokens, *heads_of(options.models[-1]))
        dtype = timing.default_dtype(backend)
        result["shape"], result["dtype"] = shape, dtype
        rows: dict[timing.Rows, Ranges] = {
            "causal": causal_row(options.tokens, options.rows),
            "packed": packed_rows(options.infilling, options.rows, options.tokens),
        }
        result["timings"] = {
            name: timing.measure(
                timing.alternatives(backend, name), shape, dtype, options.rounds, ranges
            )
            for name, ranges in rows.items()
        }
    print(json.dumps(result))
    sys.exit(any(x > most[name] for name, of in efficiency.items() for x in of.values()))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
