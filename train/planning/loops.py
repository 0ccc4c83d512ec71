"""How often a loop of optimized HLO runs.

TPU programs carry no ``known_trip_count``, so the count is read from the loop itself: a counter
that starts at a constant, goes up by one, and is compared with a constant. That is every ``scan``
and ``fori_loop``; a bound that is data (how many blocks a query sees, when a row ends) stays
unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from train.planning.hlo import Computation, Instruction, Module

Known = Mapping[int, int]
"""Elements of a loop's state whose value is a constant, by index."""
_SAME = ("copy", "bitcast", "convert", "copy-done", "copy-start", "reshape")


def trip_count(
    module: Module, loop: Instruction, inside: Computation, known: Known
) -> tuple[int | None, Known]:
    """Passes of a ``while`` and what is constant in its body; None where data decides.

    Args:
      inside: the computation that the loop stands in.
      known: what is constant in the state of the loop around it.
    """
    body = module.computations[loop.called("body") or ""]
    condition = module.computations[loop.called("condition") or ""]
    starts = _starts(loop, inside, known)
    constant = {i: value for i, value in starts.items() if _element(body, body.root, i) == i}
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if stated:
        return int(stated[1]), constant
    compared = _comparison(module, condition)
    if compared is None:
        return None, constant
    (counter, bound), direction = compared
    index, limit = _element(condition, counter), _value(condition, bound, constant)
    if index is None or limit is None or starts.get(index) is None:
        return None, constant
    if not _counts_up(module, body, index):
        return None, constant
    return max(limit - starts[index] + (direction == "LE"), 0), constant


def _starts(loop: Instruction, inside: Computation, known: Known) -> dict[int, int]:
    state = inside.instructions.get(loop.operands[0])
    if state is None or state.opcode != "tuple":
        return {}
    values = {
        i: _value(inside, inside.instructions.get(name), known)
        for i, name in enumerate(state.operands)
    }
    return {i: value for i, value in values.items() if value is not None}


def _value(inside: Computation, of: Instruction | None, known: Known) -> int | None:
    """The integer that an instruction always gives."""
    while of is not None and of.opcode in _SAME:
        of = inside.instructions.get(of.operands[0])
    if of is None:
        return None
    if of.opcode == "constant":
        literal = of.operands[0] if of.operands else ""
        return int(literal) if re.fullmatch(r"-?\d+", literal) else None
    index = _element(inside, of)
    return None if index is None else known.get(index)


def _element(inside: Computation, of: Instruction | None, item: int | None = None) -> int | None:
    """Which element of the computation's own parameter this is; with ``item``, that operand."""
    if item is not None and of is not None:
        if of.opcode != "tuple" or item >= len(of.operands):
            return None
        of = inside.instructions.get(of.operands[item])
    while of is not None and of.opcode in _SAME:
        of = inside.instructions.get(of.operands[0])
    if of is None or of.opcode != "get-tuple-element":
        return None
    whole = inside.instructions.get(of.operands[0])
    if whole is None or whole.opcode != "parameter":
        return None
    found = re.search(r"index=(\d+)", of.attributes)
    return int(found[1]) if found else None


def _comparison(module: Module, condition: Computation):
    """((counter, bound), LT or LE) of a condition, as instructions of it; None if it is another."""
    root, operands = condition.root, condition.root.operands
    if root.opcode == "fusion":
        fused = module.computations[root.called("calls") or ""].root
        inner = module.computations[root.called("calls") or ""].instructions
        if fused.opcode != "compare":
            return None
        places = [_parameter(inner.get(name)) for name in fused.operands]
        if None in places:
            return None
        operands = tuple(root.operands[i] for i in places if i is not None)
        root = fused
    if root.opcode != "compare" or len(operands) != 2:
        return None
    found = re.search(r"direction=(\w+)", root.attributes)
    direction = found[1] if found else ""
    first, second = (condition.instructions.get(name) for name in operands)
    if direction in ("GT", "GE"):
        first, second, direction = second, first, direction.replace("G", "L")
    return ((first, second), direction) if direction in ("LT", "LE") else None


def _parameter(of: Instruction | None) -> int | None:
    if of is None or of.opcode != "parameter":
        return None
    return int(of.operands[0])


def _counts_up(module: Module, body: Computation, index: int) -> bool:
    """Whether each pass adds one to this element of the state."""
    if body.root.opcode != "tuple" or index >= len(body.root.operands):
        return False
    of, inside = body.instructions.get(body.root.operands[index]), body
    while of is not None and of.opcode in _SAME:
        of = inside.instructions.get(of.operands[0])
    if of is None or of.opcode != "add":
        return False
    terms = [inside.instructions.get(name) for name in of.operands]
    return any(_value(inside, t, {}) == 1 for t in terms) and any(
        _element(inside, t) == index for t in terms
    )
