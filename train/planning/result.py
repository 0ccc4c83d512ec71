"""One answer as numbers: what ``--json`` prints and what tables are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from train.planning import cache
from train.planning.estimate import Estimate, estimate, memory_floor
from train.planning.question import Question, mesh_text


@dataclasses.dataclass(frozen=True)
class Result:
    question: Question
    found: Mapping[str, Any]
    """The answer of ``train.planning.child``."""

    @property
    def fits(self) -> bool:
        return self.found["fits"]

    @property
    def hbm_bytes(self) -> int:
        """Of one device; as the compiler states it where it refused."""
        stated = (self.found.get("refusal") or {}).get("available_bytes")
        return stated or self.question.where.chip.hbm_bytes

    @property
    def peak_bytes(self) -> int | None:
        """Arguments, outputs that reuse none of them, and temporaries, per device. Of a refused
        program what the compiler says it needs, which may be its temporaries alone."""
        if self.fits:
            return self.found["memory"]["peak"]
        return self.found["refusal"]["needed_bytes"]

    @property
    def over_bytes(self) -> int | None:
        """By how much it does not fit, at least."""
        if self.fits or self.peak_bytes is None:
            return None
        return self.peak_bytes - self.hbm_bytes

    @property
    def estimate(self) -> Estimate | None:
        return estimate(self.question, self.found) if self.fits else None

    @property
    def tokens_per_second(self) -> float | None:
        """Over all chips, by the estimate: an upper bound."""
        made = self.estimate
        return self.found["tokens"] / made.seconds if made and made.seconds else None

    def memory(self) -> dict[str, int]:
        """Bytes per device by kind. Gradients are counted from shapes, activations from the buffers
        of the loop over layers; both lie inside the compiler's temporaries."""
        shares, sizes = dict(self.found["shares"]), self.found.get("memory")
        gradients = shares.pop("gradients", 0)
        parts = dict(shares)
        if sizes:
            rest = sizes["argument"] - sum(shares.values())
            parts["tile padding, less what is not read"] = rest
            parts["outputs not in place"] = sizes["output"] - sizes["alias"]
        if gradients:
            parts["gradients"] = gradients
        if sizes:
            kept = self.found.get("kept_bytes") or 0
            if kept:
                parts["activations kept for the backward pass"] = kept
            # Below zero where gradients and activations never exist all at once.
            parts["other temporaries"] = sizes["temp"] - gradients - kept
        return parts

    def to_dict(self) -> dict[str, Any]:
        """Everything, with units in the names; one JSON line."""
        asked, made = self.question, self.estimate
        answer = {
            "model": asked.model,
            "topology": asked.topology,
            "task": asked.task,
            "method": asked.method if asked.task == "finetune" else None,
            "mesh": mesh_text(asked.mesh),
            "length": asked.length,
            "rows": asked.rows,
            "remat": asked.remat if asked.training else None,
            "quant": asked.quant,
            "chips": asked.where.chips,
            "devices": asked.where.devices,
            "fits": self.fits,
            "peak_bytes": self.peak_bytes,
            "hbm_bytes": self.hbm_bytes,
            "over_bytes": self.over_bytes,
            "memory_bytes": self.memory(),
            "refusal": (self.found.get("refusal") or {}).get("message"),
            "model_flops": self.found["model_flops"],
            "tokens_per_step": self.found["tokens"],
            "steps": self.found["calls"],
            "estimated_cycles": self.found.get("estimated_cycles"),
            "estimated_seconds": made and made.seconds,
            "estimated_utilisation": made and made.utilisation,
            "estimate_parts": made and [dataclasses.asdict(p) for p in made.parts],
            "unknown_instructions": self.found.get("unknown"),
            "collectives": self.found.get("collectives"),
            "kernels": self.found.get("kernels"),
            "compile_seconds": self.found.get("compile_seconds"),
            "cached": self.found.get("cached", False),
            "versions": {name: cache.version(name) for name in ("jax", "libtpu")},
            "command": asked.command(),
        }
        if asked.task == "decode" and self.fits:
            answer["memory_floor_seconds"] = memory_floor(asked, self.found)
        return answer
