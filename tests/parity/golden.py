"""The released code's own numbers, and our models converted from the very checkpoints behind them.

The whole set lies beside the repository (``../shared/golden``); a part of it is kept in
``tests/golden`` for a checkout that stands alone. Cases that are found in neither are skipped.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import glm_jax
from convert.engine import released_tree
from convert.from_torch import convert
from glm_jax.config import GLMConfig
from glm_jax.nn import GLM
from glm_jax.text.layout import LaidOut, lay_out, stack_rows

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PLACES = (ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden")
# The references' own float32 noise is 1e-5, and 1.4e-4 for ChatGLM-6B, whose logits reach 12.
TOLERANCE = 2e-4
TOLERANCES = {"chatglm-6b": 1e-3}
ROWS, WIDTH = 4, 16  # every batch is padded to this, so that a model is compiled once
LARGEST: dict[tuple[str, str], float] = {}
"""Largest difference per case and kind, for the report at the end of a run."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One folder of golden numbers and the model converted from its checkpoint."""

    name: str
    model: GLM
    cases: dict[str, np.ndarray]

    @property
    def config(self) -> GLMConfig:
        return self.model.config

    @property
    def family(self) -> str:
        return self.name.split("/")[0].removesuffix("-int8").removesuffix("-int4")

    @property
    def layout(self) -> str:
        return {"glm-10b": "glm", "chatglm-6b": "chatglm"}.get(self.family, "chatglm2")

    def get(self, name: str) -> np.ndarray:
        return self.cases[name]

    def need(self, group: str) -> None:
        if not any(name.startswith(f"{group}/") for name in self.cases):
            pytest.skip(f"{self.name} has no {group} case")

    def close(self, ours, name: str, theirs=None, *, kind: str = "logits", tolerance=None):
        """``ours`` agrees with the tensor of this name (or with ``theirs``, a part of it).

        Gradients are compared relative to their largest entry, which is 334 in ChatGLM-6B.
        """
        theirs = self.get(name) if theirs is None else theirs
        ours = np.asarray(ours, np.float32)
        assert ours.shape == theirs.shape, name
        scale = max(1.0, float(np.abs(theirs).max())) if kind == "gradient" else 1.0
        error = float(np.abs(ours - theirs).max()) / scale if theirs.size else 0.0
        LARGEST[self.name, kind] = max(LARGEST.get((self.name, kind), 0.0), error)
        limit = tolerance or TOLERANCES.get(self.family, TOLERANCE)
        assert error <= limit, f"{self.name}: {name} differs by {error}"

    def released_names(self, tree) -> dict[str, np.ndarray]:
        return released_tree(tree, self.config, self.layout)


def folder(name: str) -> pathlib.Path:
    """Where a case lies; skips the test where it does not."""
    for place in PLACES:
        if (place / name / "cases.safetensors").is_file():
            return place / name
    pytest.skip(f"golden vectors of {name} are not here (looked in ../shared/golden)")


@functools.cache
def load_case(name: str, base: str | None = None, *, keep_quantized: bool = False) -> Case:
    """A case's model, converted and loaded in float32.

    Args:
      base: of a prefix: the case whose model it belongs to.
    """
    source = folder(name)
    cases = load_file(source / "cases.safetensors")
    if base is not None:
        with tempfile.TemporaryDirectory() as place:
            convert(source, f"{place}/prefix", base=folder(base))
            adapter = glm_jax.peft.load_adapter(f"{place}/prefix")
        return Case(name, glm_jax.peft.attach(load_case(base).model, adapter), cases)
    with tempfile.TemporaryDirectory() as place:
        # An integer times a float16 scale needs more digits than float16 has.
        dtype = None if keep_quantized else "float32"
        checkpoint = f"{place}/released"
        shutil.copytree(source, checkpoint, ignore=shutil.ignore_patterns("cases.*"))
        convert(checkpoint, f"{place}/model", keep_quantized=keep_quantized, dtype=dtype)
        model = glm_jax.load(f"{place}/model", dtype="float32")
    return Case(name, with_command_tokens(source, model), cases)


def with_command_tokens(source: pathlib.Path, model: GLM) -> GLM:
    """The ids of a tiny vocabulary where its released config.json cannot say them."""
    about = json.loads((source / "cases.json").read_text())
    special = model.config.special
    tiny = about.get("special_token_ids_of_this_tiny_vocabulary")
    if tiny:
        ours = {"ENC": "cls", "MASK": "mask", "gMASK": "gmask", "sMASK": "smask"}
        named = {ours.get(name, name.lower()): i for name, i in tiny.items()}
        special = dataclasses.replace(special, **named)
    if about.get("variant") == "v1.0":  # its code has the two ids of the full vocabulary
        special = dataclasses.replace(special, mask=184, gmask=185)
    model = jax.tree.map(lambda x: x, model)
    model.config = model.config.replace(special=special)
    return model


_trace = jax.jit(GLM.trace)
_logits = jax.jit(GLM.logits)


def padded(rows: list[LaidOut], count: int = ROWS, width: int = WIDTH):
    """Arrays of one shape for all tests."""
    return stack_rows([*rows, *rows[:1] * (count - len(rows))], width)


def trace(case: Case, rows: list[LaidOut]):
    """``(trace, logits)`` of these rows, padded."""
    states = _trace(case.model, *padded(rows)[:4])
    return states, np.asarray(_logits(case.model, states.final_norm))


def check_rows(
    case: Case, group: str, rows: list[LaidOut], real=None, *, tolerance: float | None = None
) -> None:
    """Logits, and hidden states of every layer where the case has them.

    Args:
      real: [B, T] which of the released places our rows hold, in order; all by default.
    """
    states, logits = trace(case, rows)
    layers = {f"hidden_layer_{i}": states.layers[i] for i in range(case.config.num_layers)}
    ours = {"hidden_embedding": states.embedding, **layers, "hidden_final_norm": states.final_norm}
    if real is None:
        real = [slice(None)] * len(rows)
    for part, values in {**ours, "logits": logits}.items():
        name = f"{group}/{part}"
        if name in case.cases:
            kind = "logits" if part == "logits" else "hidden"
            for mine, row, theirs, keep in zip(values, rows, case.get(name), real, strict=False):
                mine = mine[: len(row.tokens)]
                case.close(mine, name, theirs[keep], kind=kind, tolerance=tolerance)


def lay_out_real(case: Case, group: str) -> tuple[list[LaidOut], np.ndarray]:
    """The rows of a left-padded batch without their padding, and where their tokens were."""
    ids, mask = case.get(f"{group}/input_ids"), case.get(f"{group}/attention_mask")
    real = mask.astype(bool) if mask.ndim == 2 else ~np.diagonal(mask[:, 0], axis1=1, axis2=2)
    return [lay_out(row[keep], case.config) for row, keep in zip(ids, real, strict=True)], real


def train_batch(case: Case, rows: list[LaidOut], labels: list[np.ndarray]):
    """As ``lm_loss`` takes it: the released models shift the labels, ours never do."""
    batch = padded(rows)
    targets, weights = np.zeros((2, ROWS, WIDTH), np.int32)
    for i, row in enumerate(labels):
        shifted = row[1:]
        targets[i, : len(shifted)] = np.maximum(shifted, 0)
        weights[i, : len(shifted)] = shifted != -100
    named = dict(zip(("tokens", "positions", "k_start", "k_end"), batch[:4], strict=True))
    return {**named, "targets": targets, "loss_weights": weights.astype(np.float32)}


_decode = jax.jit(GLM.decode)
CACHE = 48


class Reader:
    """Rows being read and continued through the cache, as the released ``generate`` does."""

    def __init__(self, case: Case, rows: list[LaidOut]):
        self.case, self.rows = case, rows
        self.cache = case.model.new_cache(ROWS, CACHE)
        self.slots = np.zeros(ROWS, np.int32)

    def read(self, rows: list[LaidOut]) -> list[np.ndarray]:
        """Logits of more tokens, whose key ranges count from the first slot."""
        batch = padded(rows, width=WIDTH if max(len(r.tokens) for r in rows) > 1 else 1)
        lengths = batch.lengths
        ends = np.where(batch.k_end > 0, batch.k_end + self.slots[:, None], 0)
        starts = np.zeros_like(ends)
        hidden, self.cache = _decode(
            self.case.model, batch.tokens, batch.positions, starts, ends, self.cache, self.slots
        )
        self.slots = self.slots + lengths
        logits = np.asarray(_logits(self.case.model, hidden))
        return [logits[i, : lengths[i]] for i in range(len(rows))]

    def greedy(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """``(tokens [B, N], logits [B, N, V])`` of the best token at every step."""
        last = np.stack([logits[-1] for logits in self.read(self.rows)])
        after = [row.following(steps) for row in self.rows]
        tokens, scores = [], []
        for step in range(steps):
            scores.append(last)
            tokens.append(last.argmax(-1))
            if step < steps - 1:
                more = [
                    LaidOut(np.array([t]), at[:, step : step + 1], 0, None)
                    for t, at in zip(tokens[-1], after, strict=True)
                ]
                last = np.concatenate(self.read(more))
        return np.stack(tokens, 1), np.stack(scores, 1)
