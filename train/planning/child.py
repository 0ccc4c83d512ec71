"""Compiles one program and prints what the compiler says: ``python -m train.planning.child JSON``.

It runs in a process of its own: libtpu can only be loaded once, with the environment it finds, and
ends the process where it fails badly.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from train.planning.hlo import parse
from train.planning.kept import kept_activations
from train.planning.programs import lower
from train.planning.question import Question
from train.planning.refusal import refusal
from train.planning.schedule import dumped
from train.planning.walk import Totals, walk


def answer(question: Question, hlo_path: str = "", schedules: str = "") -> dict[str, Any]:
    """The compiler's findings as JSON.

    Args:
      hlo_path: where to leave the optimized HLO; empty: nowhere.
      schedules: where the compiler leaves its schedules (``schedule.flags``); empty: nowhere.
    """
    where = question.where
    description = dict(where.description)
    name = description.pop("topology_name")
    devices = topologies.get_topology_desc(
        topology_name=name, platform="tpu", **description
    ).devices
    began = time.monotonic()
    program = lower(question, devices)
    found = {
        "shares": dict(program.shares),
        "model_flops": program.flops,
        "tokens": program.tokens,
        "calls": program.calls,
    }
    try:
        compiled = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refused = refusal(str(error))
        if refused is None:
            raise
        return {**found, "fits": False, "refusal": dataclasses.asdict(refused)}
    found["compile_seconds"] = round(time.monotonic() - began, 1)
    text = compiled.as_text()
    if hlo_path:
        with open(hlo_path, "w") as file:
            file.write(text)
    per_slice = where.devices // where.slices if where.slices > 1 else None
    module = parse(text)
    known = dumped(Path(schedules)) if schedules else {}
    totals = _one_step(question, walk(module, per_slice, known))
    if question.training:
        found["kept_bytes"] = kept_activations(module, question.config.num_layers)
    return {**found, "fits": True, "memory": _memory(compiled), **_plain(totals)}


def _memory(compiled: Any) -> dict[str, int]:
    stats = compiled.memory_analysis()
    fields = ("argument", "output", "alias", "temp", "generated_code")
    sizes = {name: getattr(stats, f"{name}_size_in_bytes") for name in fields}
    peak = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    return {**sizes, "peak": peak}


def _one_step(question: Question, totals: Totals) -> Totals:
    """Decoding is a loop until the rows are done: one pass of it, which is one token."""
    if question.task != "decode" or not totals.loops:
        return totals
    return max(totals.loops, key=lambda loop: loop.once.cycles).once


def _plain(totals: Totals) -> dict[str, Any]:
    """Totals with what is alike put together."""
    groups: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for c in totals.collectives:
        key = (c.kind, c.exposed, c.crosses_slices)
        groups[key][0] += c.times
        groups[key][1] += c.times * c.wire
    kernels: dict[tuple, int] = collections.Counter()
    for k in totals.kernels:
        kernels[(k.source, k.flops, k.bytes, k.causal_flops, k.causal_bundles)] += k.times
    fields = ("source", "flops", "bytes", "causal_flops", "causal_bundles")
    names = ("kind", "exposed", "crosses_slices")
    return {
        "estimated_cycles": totals.cycles,
        "collectives": [
            {**dict(zip(names, key, strict=True)), "times": int(n), "wire_bytes": int(wire)}
            for key, (n, wire) in sorted(groups.items())
        ],
        "kernels": [
            {**dict(zip(fields, key, strict=True)), "times": n} for key, n in kernels.items()
        ],
        "data_loops": [
            {"source": loop.source, "times": loop.times, **_plain(loop.once)}
            for loop in totals.loops
        ],
        "unknown": totals.unknown,
    }


def main() -> None:
    found = answer(Question.from_json(sys.argv[1]), *sys.argv[2:4])
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
