"""All sensible meshes, remat policies and batches of one training task, ranked."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from glm_jax.errors import UserError
from train.planning.question import Question, check
from train.planning.result import Result

REMATS = ("full", "attention", "minimal", "none")
"""From the one that keeps least to the one that keeps most."""
BATCHES = (1, 2, 4, 8, 16)
"""Rows per device of data x fsdp."""

Ask = Callable[[Question], dict[str, Any]]


def meshes(question: Question) -> list[tuple[int, int, int, int]]:
    """Shapes worth a try: ``tensor`` up to 8 and dividing the heads, ``context`` up to 16 where
    rows are long, the rest fsdp; slices are replicas."""
    where, config = question.where, question.config
    devices = where.devices // where.slices
    found = []
    for tensor, context in itertools.product((1, 2, 4, 8), (1, 4, 16)):
        if context > 1 and (question.length < 16384 or question.length % (128 * context)):
            continue
        if config.num_heads % tensor or devices % (tensor * context):
            continue
        found.append((where.slices, devices // (tensor * context), tensor, context))
    return found


def search(question: Question, ask: Ask, progress: Callable[[str], None]) -> Iterator[Result]:
    """Asks one plan after the other; the compiler's refusal ends each direction.

    A refused batch is not tried larger, and a policy that keeps more is not tried with a batch
    that a thriftier one could not hold: memory only grows in both directions.

    Args:
      ask: ``train.planning.compiler.ask`` or a stand-in.
      progress: told of each plan before it is compiled.
    """
    for mesh in meshes(question):
        most = len(BATCHES)
        for remat in REMATS:
            held = 0
            for batch in BATCHES[:most]:
                rows = batch * mesh[0] * mesh[1]
                plan = dataclasses.replace(question, mesh=mesh, remat=remat, rows=rows)
                progress(plan.command())
                result = Result(plan, ask(check(plan)))
                yield result
                if not result.fits:
                    break
                held += 1
            most = min(most, held)


def upper_count(question: Question) -> int:
    """Plans that a search would compile if all of them fitted."""
    return len(meshes(question)) * len(REMATS) * len(BATCHES)


def rank(results: list[Result]) -> list[Result]:
    """Most tokens per second first; what does not fit last."""
    return sorted(results, key=lambda r: -(r.tokens_per_second or 0.0))


def check_searchable(question: Question) -> None:
    """Raises:
    UserError: the task has nothing to search over.
    """
    if not question.training:
        raise UserError("--search is for pretrain and finetune: there is no remat in inference")
