"""An estimate of the time of one step, in parts that say how each was made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from train.planning.chips import Chip
from train.planning.question import Question


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    seconds: float | None
    """None where nothing is known."""
    how: str
    counted: bool = True
    """Whether it belongs in the sum: what runs beside the arithmetic does not."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    parts: tuple[Part, ...]
    model_flops: int
    peak_flops: float
    """Of all devices."""

    @property
    def seconds(self) -> float:
        """The sum of what is known: a chip needs at least about this long."""
        return sum(p.seconds for p in self.parts if p.counted and p.seconds is not None)

    @property
    def utilisation(self) -> float:
        """Model FLOPs over what the devices could do in ``seconds``."""
        return self.model_flops / (self.peak_flops * self.seconds) if self.seconds else 0.0


def estimate(question: Question, found: Mapping[str, Any]) -> Estimate:
    """From an answer of ``train.planning.child`` that fits.

    XLA's ``estimated_cycles`` are the only estimate by the compiler. Kernels, links and loops over
    data are counted at their best, each on its own line, so the sum is a lower bound that ranks
    programs; it does not predict a chip.
    """
    where = question.where
    chip = where.chip
    parts = [
        Part(
            "compute",
            found["estimated_cycles"] / chip.clock,
            f"XLA's estimated_cycles x loop trips at {chip.clock / 1e9:g} GHz",
        ),
        *_kernels(found["kernels"], chip),
        *_loops(found["data_loops"], question),
        *_collectives(found["collectives"], question),
    ]
    return Estimate(tuple(parts), found["model_flops"], chip.peak_flops * where.devices)


def memory_floor(question: Question, found: Mapping[str, Any]) -> float:
    """Seconds to read weights and cache once at the chip's memory bandwidth (data sheet)."""
    shares = found["shares"]
    read = shares["parameters"] + shares.get("cache", 0)
    return read / question.where.chip.hbm_bandwidth


def _kernels(kernels: list[Mapping[str, Any]], chip: Chip) -> list[Part]:
    parts = []
    ours = [k for k in kernels if k["causal_flops"] is not None]
    stated = [k for k in kernels if k not in ours and k["flops"] is not None]

    def stated_seconds(kernel: Mapping[str, Any]) -> float:
        read = (kernel["bytes"] or 0) / chip.hbm_bandwidth
        return max(kernel["flops"] / chip.peak_flops, read)

    def causal_seconds(kernel: Mapping[str, Any]) -> float:
        """Of both bounds the higher: a schedule does not show where a matrix unit is waited for."""
        cycles = kernel.get("causal_bundles") or 0.0
        at_peak = kernel["causal_flops"] / chip.peak_flops
        return max(cycles / (chip.clock * chip.cores), at_peak)

    scheduled = all(k.get("causal_bundles") for k in ours)
    causal = "bundles of the compiler's schedule x trips for causal rows, or " * scheduled
    causal += "FLOPs of causal rows at peak"
    for name, some, seconds, how in (
        ("attention kernel", ours, causal_seconds, causal),
        ("Pallas kernels", stated, stated_seconds,
         "the FLOPs they state at peak, or their bytes at the memory's bandwidth"),
    ):  # fmt: skip
        if some:
            total = sum(k["times"] * seconds(k) for k in some)
            calls = sum(k["times"] for k in some)
            parts.append(Part(name, total, f"{calls} calls, {how}: at least"))
    silent = sum(k["times"] for k in kernels if k not in ours and k not in stated)
    if silent:
        parts.append(Part("other kernels", None, f"{silent} calls that state no FLOPs: unknown"))
    return parts


def _loops(loops: list[Mapping[str, Any]], question: Question) -> list[Part]:
    if not loops:
        return []
    cycles = sum(loop["times"] * loop["estimated_cycles"] for loop in loops)
    entries = sum(loop["times"] for loop in loops)
    how = f"entered {entries} times, one pass each: how many more is data, so at least"
    return [Part("loops over data", cycles / question.where.chip.clock, how)]


def _collectives(collectives: list[Mapping[str, Any]], question: Question) -> list[Part]:
    chip, parts = question.where.chip, []
    for crosses in (False, True):
        rate = chip.slice_bandwidth if crosses else chip.link_bandwidth
        network = "between slices" if crosses else "links"
        for exposed in (True, False):
            mine = [
                c for c in collectives if (c["crosses_slices"], c["exposed"]) == (crosses, exposed)
            ]
            if not mine:
                continue
            sent = sum(c["wire_bytes"] for c in mine)
            name = f"{network}, {'exposed' if exposed else 'beside compute'}"
            if not rate:
                parts.append(Part(name, None, f"{sent:,} bytes; no bandwidth is published"))
                continue
            how = f"bytes at all of the chip's {rate / 1e9:g} GB/s: at least"
            parts.append(Part(name, sent / rate, how, counted=exposed))
    return parts
