"""Log probabilities of the answers before the first step: computed once, kept with the run."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from glm_jax.ckpts.model_dir import barrier
from glm_jax.data.preference import Pairs, some_batches
from glm_jax.nn import GLM, Compute
from glm_jax.sharding import local_rows
from train.alignment.losses import pair_logps
from train.files import write_whole
from train.trainer import put_batch


def reference_logps(
    model: GLM, pairs: Pairs, mesh: Mesh, batch_size: int, compute: Compute
) -> Float[np.ndarray, "N 2"]:
    """``pair_logps`` of all pairs, on every process."""
    whole = NamedSharding(mesh, PartitionSpec())
    score = jax.jit(functools.partial(pair_logps, compute=compute), out_shardings=whole)
    rows = local_rows(mesh, batch_size)
    found = []
    for batch in some_batches(pairs.rows, range(len(pairs)), batch_size, rows):
        del batch["present"]
        found.append(np.asarray(score(model, put_batch(batch, mesh))))
    return np.concatenate(found)[: len(pairs)]


class ReferenceFile:
    """Arrays that belong to a run, in one file with the name of what they were made from.

    Args:
      made_from: what must be the same for the arrays to be of use.
    """

    def __init__(self, path: epath.Path, made_from: Mapping[str, Any]):
        self._path = path
        text = json.dumps(made_from, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()

    def read(self) -> dict[str, np.ndarray] | None:
        """The arrays; None where there are none that fit."""
        if not self._path.exists():
            return None
        try:
            with np.load(io.BytesIO(self._path.read_bytes())) as file:
                arrays = dict(file)
        except (OSError, ValueError, EOFError):
            return None  # cut short: they are made again
        return arrays if str(arrays.pop("made_from", "")) == self._key else None

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Under a temporary name first, by the first process."""
        if jax.process_index() == 0:
            buffer = io.BytesIO()
            np.savez(buffer, made_from=np.array(self._key), **arrays)
            write_whole(self._path, buffer.getvalue())
        barrier("train.alignment.ReferenceFile: written")
