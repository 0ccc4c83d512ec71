"""Results for a person: one in full, or many as rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from train.planning.estimate import memory_floor
from train.planning.question import Question, mesh_text
from train.planning.result import Result

GIB = 2**30


def show(result: Result, console: Console) -> None:
    """Whether it fits, memory by kind, traffic, and the estimate with how it was made."""
    asked = result.question
    where = asked.where
    shape = f"{'x'.join(map(str, where.shape))} {where.chip.device_kind}"
    devices = f"{where.devices} device{'s' * (where.devices > 1)}"
    slices = f"{where.slices} slices of " if where.slices > 1 else ""
    rows = f"{asked.rows} row{'s' * (asked.rows > 1)}"
    size = f"{asked.length:,} {'tokens' if asked.training else 'slots'}"
    console.print(
        f"{asked.model}, {task(asked)} on {asked.topology}: {slices}{shape}, "
        f"{devices}, mesh {mesh_text(asked.mesh)}; {rows} of {size}"
        + (f", remat {asked.remat}" if asked.training else f", weights {weights(asked.quant)}"),
        soft_wrap=True,
    )
    console.print(verdict(result), soft_wrap=True, style="bold" if result.fits else "bold red")
    console.print(_memory(result))
    if not result.fits:
        return
    if result.found["collectives"]:
        console.print(_traffic(result))
    console.print(_time(result))
    for line in _remarks(result):
        console.print(line, soft_wrap=True)


def verdict(result: Result) -> str:
    """One line: fits or by how much not."""
    hbm = f"{result.hbm_bytes / GIB:.2f} GiB"
    if result.fits:
        assert result.peak_bytes is not None
        return f"fits: {result.peak_bytes / GIB:.2f} of {hbm} per device"
    if result.over_bytes is None:
        return f"does not fit {hbm} per device: {result.found['refusal']['message']}"
    what = "needs" if result.found["refusal"]["whole"] else "its temporaries alone need"
    needed = f"{(result.peak_bytes or 0) / GIB:.2f}"
    return (
        f"does not fit: {what} {needed} of {hbm} per device, "
        f"{result.over_bytes / GIB:.2f} GiB too many"
    )


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as the documents write it."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def ranked(results: Sequence[Result], console: Console) -> None:
    """Plans, best first; those that do not fit last."""
    table = Table(title="plans, most tokens per second (upper bounds) first", title_justify="left")
    for name in ("mesh", "remat", "rows/device", "peak GiB", "step", "tokens/s", "utilisation"):
        table.add_column(
            name, justify="left" if name in ("mesh", "remat") else "right", no_wrap=True
        )
    for result in results:
        asked, made = result.question, result.estimate
        ways = asked.mesh[0] * asked.mesh[1]
        start = [mesh_text(asked.mesh), asked.remat, f"{asked.rows // ways}"]
        if made is None:
            over = f"+{result.over_bytes / GIB:.2f} over" if result.over_bytes else "refused"
            table.add_row(*start, over, "", "", "", style="dim")
            continue
        rate = result.tokens_per_second or 0
        peak = f"{(result.peak_bytes or 0) / GIB:.2f}"
        table.add_row(
            *start, peak, duration(made.seconds), f"{rate:,.0f}", f"{made.utilisation:.1%}"
        )
    console.print(table)


def weights(quant: str) -> str:
    return "bfloat16" if quant == "none" else quant


def task(asked: Question) -> str:
    """With the method, where there are several."""
    if asked.task != "finetune":
        return asked.task
    base = "" if asked.method == "full" else f" on {weights(asked.quant)}"
    return f"finetune by {asked.method}{base}"


def _memory(result: Result) -> Table:
    table = Table(title="memory per device", title_justify="left")
    table.add_column("what")
    table.add_column("GiB", justify="right")
    for name, size in result.memory().items():
        table.add_row(name, f"{size / GIB:.3f}")
    if result.fits:
        table.add_row("peak", f"{(result.peak_bytes or 0) / GIB:.3f}", style="bold")
    return table


def _traffic(result: Result) -> Table:
    table = Table(title="collectives per device and step", title_justify="left")
    for name in ("kind", "where", "times", "GB sent"):
        table.add_column(name, justify="left" if name in ("kind", "where") else "right")
    for c in sorted(result.found["collectives"], key=lambda c: -c["wire_bytes"]):
        where = "between slices" if c["crosses_slices"] else "links"
        where += ", exposed" if c["exposed"] else ", beside compute"
        table.add_row(c["kind"], where, str(c["times"]), f"{c['wire_bytes'] / 1e9:.3f}")
    return table


def _time(result: Result) -> Table:
    made = result.estimate
    assert made is not None
    table = Table(title="estimated time of one step, at least", title_justify="left")
    for name in ("part", "time", "how"):
        table.add_column(name, justify="right" if name == "time" else "left")
    for part in made.parts:
        name = part.name if part.counted else f"({part.name})"
        table.add_row(name, duration(part.seconds), part.how)
    table.add_row("sum", duration(made.seconds), "what is in brackets is left out", style="bold")
    return table


def _remarks(result: Result) -> list[str]:
    made, asked = result.estimate, result.question
    assert made is not None
    pieces = f", {result.found['calls']} such steps" if result.found["calls"] > 1 else ""
    lines = [
        f"{result.found['tokens']:,} token{'s' * (result.found['tokens'] > 1)} a step{pieces}, "
        f"at most {result.tokens_per_second:,.0f} tokens/s; model FLOPs "
        f"{made.model_flops:.3e} a step, utilisation at most {made.utilisation:.1%} "
        f"of {made.peak_flops:.3e} FLOP/s"
    ]
    if asked.task == "decode":
        floor = duration(memory_floor(asked, result.found))
        lines.append(f"reading weights and cache once takes {floor} at the memory's bandwidth")
    if unknown := result.found["unknown"]:
        named = ", ".join(f"{n} {opcode}" for opcode, n in sorted(unknown.items()))
        lines.append(f"without an estimate and not in the sum: {named}")
    source = "from the cache" if result.found.get("cached") else "compiled"
    lines.append(f"{source}; an estimate ranks programs, it does not predict a chip")
    return lines
