"""Activations that a training step keeps for its backward pass, found in the compiled program."""

from __future__ import annotations

import re

from train.planning.hlo import Computation, Instruction, Module, shape_bytes
from train.planning.loops import trip_count


def kept_activations(module: Module, layers: int) -> int | None:
    """Bytes per device that the scan over layers writes forward, one slice a layer.

    The first loop of as many passes as there are layers that is given empty arrays with a leading
    axis of that length is the forward one, and they are what it keeps. None where there is none.
    """
    entry = module.entry
    for instruction in entry.instructions.values():
        if instruction.opcode != "while":
            continue
        passes, _ = trip_count(module, instruction, entry, {})
        if passes == layers and (kept := _empty(entry, instruction, layers)):
            return kept
    return None


def _empty(entry: Computation, loop: Instruction, layers: int) -> int:
    state = entry.instructions.get(loop.operands[0])
    if state is None or state.opcode != "tuple":
        return 0
    given = [entry.instructions.get(name) for name in state.operands]
    stacked = re.compile(rf"[a-z0-9]+\[{layers},")
    return sum(
        shape_bytes(x.shape) for x in given if x and stacked.match(x.shape) and _unwritten(entry, x)
    )


def _unwritten(entry: Computation, of: Instruction | None) -> bool:
    """Memory that is only reserved, or filled with one value."""
    while of is not None and of.opcode in ("copy", "bitcast"):
        of = entry.instructions.get(of.operands[0])
    if of is None:
        return False
    reserved = of.opcode == "custom-call" and '"AllocateBuffer"' in of.attributes
    return reserved or of.opcode == "broadcast"
