"""Adds up a compiled program: estimated cycles, kernels, collectives, each times its loops."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from train.planning.hlo import Computation, Instruction, Module, shape_bytes
from train.planning.kernels import call_of, causal_bundles, causal_flops
from train.planning.loops import Known, trip_count
from train.planning.schedule import Part

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# No arithmetic of their own, or a few scalars of loop control, or copies that run beside the
# arithmetic. What else has no estimate is reported by name.
_FREE = frozenset(
    (
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "broadcast",
        "copy-start", "copy-done", "slice-start", "slice-done", "async-done", "async-update",
        "partition-id", "replica-id", "after-all", "opt-barrier", "add-dependency", "domain",
        "dynamic-update-slice", "send-done", "recv", "recv-done",
    )
)  # fmt: skip
# Custom calls that only name or reserve memory.
_NAMES_ONLY = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast")
_FLAG = "u32[]{:S(2)}"  # in the memory of synchronization flags
_SMALL = 64 * 1024  # bytes; below this an instruction is not worth a line


@dataclasses.dataclass(frozen=True)
class Collective:
    kind: str
    times: int
    size: int
    """Bytes of one whole operand: of all-gather what comes out, of reduce-scatter what goes in."""
    group: int
    """Chips that take part in one instance."""
    exposed: bool
    """Nothing else runs meanwhile: not started ahead (``-start``), not inside a matrix product."""
    crosses_slices: bool = False

    @property
    def wire(self) -> float:
        """Bytes that each chip sends in one run of the best ring: of n chips, (n - 1) / n of the
        whole; an all-reduce does that twice (arXiv 1909.09756, section 2)."""
        share = (self.group - 1) / self.group if self.group else 0.0
        if self.kind in ("send", "collective-permute", "collective-broadcast"):
            share = 1.0
        return self.size * share * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas call: XLA has no estimate for it."""

    source: str
    times: int
    flops: int | None
    """Of one call, as the kernel's own ``cost_estimate`` states; None where it states none."""
    bytes: int | None
    causal_flops: int | None = None
    """Of one call of the project's attention kernel, were its rows causal."""
    causal_bundles: int | None = None
    """The same in cycles of one TensorCore by the compiler's schedule, where that is known."""


@dataclasses.dataclass(frozen=True)
class DataLoop:
    """A loop whose length is data: ``once`` is one pass, and it is entered ``times`` times."""

    source: str
    times: int
    once: Totals


@dataclasses.dataclass
class Totals:
    cycles: int = 0
    """Sum of ``estimated_cycles`` x trip counts, data-dependent loops left out."""
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    kernels: list[Kernel] = dataclasses.field(default_factory=list)
    loops: list[DataLoop] = dataclasses.field(default_factory=list)
    unknown: dict[str, int] = dataclasses.field(default_factory=dict)
    """Runs of instructions without an estimate that are neither free nor small, by opcode."""

    def add(self, other: Totals, times: int) -> None:
        self.cycles += other.cycles * times
        for name in ("collectives", "kernels", "loops"):
            mine, theirs = getattr(self, name), getattr(other, name)
            mine += [dataclasses.replace(x, times=x.times * times) for x in theirs]
        for opcode, runs in other.unknown.items():
            self.unknown[opcode] = self.unknown.get(opcode, 0) + runs * times


def walk(
    module: Module, slice_size: int | None = None, schedules: Mapping[str, Part] | None = None
) -> Totals:
    """Everything the program does in one call, of one chip.

    Args:
      slice_size: chips of one slice where there are several: a collective between chips that are
        further apart goes over the data-centre network.
      schedules: of the project's kernels, by instruction.
    """
    return _Walk(module, slice_size, schedules or {}).computation(module.entry, {})


class _Walk:
    def __init__(self, module: Module, slice_size: int | None, schedules: Mapping[str, Part]):
        self._module, self._slice, self._schedules = module, slice_size, schedules

    def computation(self, inside: Computation, known: Known) -> Totals:
        totals = Totals()
        for instruction in inside.instructions.values():
            self._instruction(instruction, inside, known, totals)
        return totals

    def _instruction(self, of: Instruction, inside: Computation, known: Known, totals: Totals):
        if of.opcode == "while":
            passes, constant = trip_count(self._module, of, inside, known)
            once = self.computation(self._module.computations[of.called("body") or ""], constant)
            if passes is None:
                totals.loops.append(DataLoop(of.source, 1, once))
            else:
                totals.add(once, passes)
        elif of.opcode == "conditional":
            totals.add(self._longest(of), 1)
        elif of.opcode == "call":
            totals.add(self._named(of.called("to_apply")), 1)
        elif of.opcode == "async-start" and not self._collective_in(of):
            totals.add(self._named(of.called("calls")), 1)
        elif of.opcode == "fusion" and _goes_on(of, inside):
            totals.cycles += of.cycles or 0
        elif collective := self._collective(of, inside):
            totals.collectives.append(collective)
            totals.cycles += of.cycles or 0
        elif of.opcode == "custom-call" and "tpu_custom_call" in of.attributes:
            totals.kernels.append(_kernel(of, inside, self._schedules.get(of.name)))
        elif of.cycles is not None:
            totals.cycles += of.cycles
        elif _worth_naming(of):
            totals.unknown[of.opcode] = totals.unknown.get(of.opcode, 0) + 1

    def _named(self, name: str | None) -> Totals:
        found = self._module.computations.get(name or "")
        return Totals() if found is None else self.computation(found, {})

    def _longest(self, of: Instruction) -> Totals:
        """The branch of most cycles: which one is taken is data."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", of.attributes)
        names = re.findall(r"[\w.\-]+", listed[1]) if listed else []
        names += [of.called(f"{side}_computation") for side in ("true", "false")]
        return max((self._named(name) for name in names), key=lambda t: t.cycles)

    def _collective(self, of: Instruction, inside: Computation) -> Collective | None:
        kind = of.opcode.removesuffix("-start")
        if kind == "send":  # how several slices talk: started ahead, finished by a send-done
            size = sum(_sizes(of, inside))
            return Collective("send", 1, size, 2, exposed=False, crosses_slices=True)
        if kind in COLLECTIVES:
            return self._measured(of, inside, kind, exposed=not of.opcode.endswith("-start"))
        inner = self._collective_in(of)
        if inner is None:
            return None
        where, instruction = inner
        kind = instruction.opcode.removesuffix("-start")
        scatters = "reduce-scatter" in (of.called("calls") or "")
        kind = "reduce-scatter" if kind == "all-reduce" and scatters else kind
        # A fusion of a scatter alone (no estimate of its own) still stops the core; one that only
        # starts what later fusions go on with does not.
        exposed = of.opcode == "fusion" and of.cycles is None and _FLAG not in of.shape
        return self._measured(instruction, where, kind, exposed=exposed)

    def _collective_in(self, of: Instruction) -> tuple[Computation, Instruction] | None:
        """The collective that a fusion or an asynchronous computation holds."""
        if of.opcode not in ("fusion", "async-start"):
            return None
        where = self._module.computations.get(of.called("calls") or "")
        for instruction in where.instructions.values() if where else ():
            if instruction.opcode.removesuffix("-start") in COLLECTIVES:
                return where, instruction
        return None

    def _measured(self, of: Instruction, inside: Computation, kind: str, *, exposed: bool):
        came_in = sum(_sizes(of, inside))
        groups = list(_groups(of.attributes))
        group = len(groups[0]) if groups else 2
        size = came_in * group if kind == "all-gather" else came_in
        crosses = self._slice is not None and any(
            len({chip // self._slice for chip in g}) > 1 for g in groups
        )
        return Collective(kind, 1, size, group, exposed, crosses)


def _goes_on(of: Instruction, inside: Computation) -> bool:
    """Whether it goes on with, or ends, a collective that an earlier fusion started and that runs
    beside the products in between: it is handed the flags to wait on."""
    shapes = (inside.instructions[n].shape for n in of.operands if n in inside.instructions)
    return any(shape.startswith(_FLAG) for shape in shapes)


def _sizes(of: Instruction, inside: Computation) -> list[int]:
    """Bytes of each operand."""
    known = inside.instructions
    return [shape_bytes(known[name].shape) for name in of.operands if name in known]


def _kernel(of: Instruction, inside: Computation, schedule: Part | None) -> Kernel:
    def stated(name: str) -> int | None:
        found = re.search(rf'"{name}":"?(\d+)', of.attributes)
        return int(found[1]) if found else None

    shapes = [inside.instructions[n].shape for n in of.operands if n in inside.instructions]
    call = call_of(of.source, of.attributes)
    return Kernel(
        of.source,
        1,
        stated("flops"),
        stated("bytes_accessed"),
        causal_flops(of.source, shapes),
        causal_bundles(call, schedule) if call and schedule else None,
    )


def _worth_naming(of: Instruction) -> bool:
    if of.opcode == "custom-call" and any(f'"{name}"' in of.attributes for name in _NAMES_ONLY):
        return False
    return of.opcode not in _FREE and shape_bytes(of.shape) >= _SMALL


def _groups(attributes: str) -> Iterator[tuple[int, ...]]:
    """The chips of each replica group, in any of XLA's three notations."""
    if found := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", attributes):
        for group in re.findall(r"\{([\d,]+)\}", found[1]):
            yield tuple(int(n) for n in group.split(","))
    elif found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?",
                            attributes):  # fmt: skip
        shape, dims = _numbers(found[1]), _numbers(found[2])
        order = _numbers(found[3]) if found[3] else tuple(range(len(dims)))
        chips = _transposed(dims, order)
        size = shape[-1]
        yield from (tuple(chips[i : i + size]) for i in range(0, len(chips), size))
    elif found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        axes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", found[1])}
        taken = re.findall(r"'([^']+)'", found[2])
        names = [*(n for n in axes if n not in taken), *taken]
        order = tuple(list(axes).index(n) for n in names)
        chips = _transposed(tuple(axes.values()), order)
        size = math.prod(axes[n] for n in taken)
        yield from (tuple(chips[i : i + size]) for i in range(0, len(chips), size))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def _transposed(dims: tuple[int, ...], order: tuple[int, ...]) -> list[int]:
    """0 .. prod(dims) as an array of these dims, its axes in this order, flattened."""
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    chips = [0]
    for axis in order:
        chips = [c + i * strides[axis] for c in chips for i in range(dims[axis])]
    return chips
