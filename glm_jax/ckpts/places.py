"""The data iterator's place in a checkpoint: one small file per process, one state for all.

A process writes the part of the state that it has, such as the places of its rows of the global
batch. Parts are nested dicts and are put together key by key, so a run may go on with another
number of processes: it is the union that counts, not who wrote what.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp
from etils import epath

_READERS = 32  # small files read at one time: their latency is what counts


class Resumable(Protocol):
    """A data iterator as Grain's are; its state can be written as JSON.

    On several processes ``get_state`` gives this process's part, in nested dicts, and ``set_state``
    takes the union of the parts of all, or a part that has every key of its own.
    """

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


def united(parts: Iterable[Any]) -> Any:
    """The union of states, key by key.

    >>> united([{"step": 3, "rows": {"0": "a"}}, {"step": 3, "rows": {"1": "b"}}])
    {'step': 3, 'rows': {'0': 'a', '1': 'b'}}

    Raises:
      ValueError: two parts say different things of the same key.
    """
    parts = list(parts)
    if all(isinstance(part, Mapping) for part in parts):
        keys = dict.fromkeys(key for part in parts for key in part)
        return {key: united(part[key] for part in parts if key in part) for key in keys}
    if any(part != parts[0] for part in parts):
        raise ValueError(f"processes differ in their place: {parts[0]} and others"[:200])
    return parts[0]


def covers(state: Any, wanted: Any) -> bool:
    """Whether ``state`` has all the keys of ``wanted``, dict in dict."""
    if not isinstance(wanted, Mapping):
        return True
    return isinstance(state, Mapping) and all(
        key in state and covers(state[key], value) for key, value in wanted.items()
    )


class PlaceHandler(ocp.CheckpointHandler):
    """One text file per process; a process reads its own where that is all it needs."""

    def save(self, directory: epath.Path, args: SavePlace) -> None:
        name = f"process_{jax.process_index()}-of-{jax.process_count()}.json"
        (directory / name).write_text(json.dumps(args.state))

    def restore(self, directory: epath.Path, args: RestorePlace) -> Any:
        own = directory / f"process_{jax.process_index()}-of-{jax.process_count()}.json"
        if own.exists() and covers(state := json.loads(own.read_text()), args.like):
            return state
        files = sorted(directory.glob("process_*-of-*.json"))
        count = int(files[0].name.split("-of-")[1].removesuffix(".json")) if files else 0
        if not count or len(files) != count:
            raise FileNotFoundError(f"the place of the data is in {len(files)} of {count} files")
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
            return united(json.loads(text) for text in pool.map(epath.Path.read_text, files))


@ocp.args.register_with_handler(PlaceHandler, for_save=True)
@dataclasses.dataclass
class SavePlace(ocp.args.CheckpointArgs):
    """This process's part of the state."""

    state: Any


@ocp.args.register_with_handler(PlaceHandler, for_restore=True)
@dataclasses.dataclass
class RestorePlace(ocp.args.CheckpointArgs):
    """``like``: a state whose keys this process needs."""

    like: Any
