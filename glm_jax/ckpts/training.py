"""Training checkpoints: model, optimizer, step and the data iterator's place, written meanwhile.

Orbax writes each one under a temporary name and renames it when it is whole, so a process that is
killed leaves whole checkpoints and a temporary folder that the next run removes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from glm_jax.ckpts.checksums import checksums, damaged
from glm_jax.ckpts.model_dir import barrier
from glm_jax.ckpts.places import PlaceHandler, RestorePlace, Resumable, SavePlace
from glm_jax.ckpts.trees import differences, flat_paths, from_plain, to_plain
from glm_jax.errors import UserError, first_line


class DamagedError(Exception):
    """A checkpoint that was written but cannot be read back as it was."""


class TrainCheckpoints:
    """The checkpoints of one run, in one directory.

    Args:
      directory: local, or any path that Orbax knows (``gs://...``).
      run: what must not change between a checkpoint and the run that resumes from it, such as
        batch size and seed; it is stored, and compared on restore.
      keep: how many of the newest checkpoints stay.

    Raises:
      UserError: the directory cannot be used.
    """

    def __init__(self, directory: epath.PathLike, run: Mapping[str, Any], *, keep: int = 3):
        self.directory = epath.Path(directory).absolute()
        self._run = json.loads(json.dumps(dict(run)))
        # One that cannot be made in the background (full disk) would be waited for 20 minutes.
        at_once = ocp.AsyncOptions(create_directories_asynchronously=False)
        # Not lightweight_initialize: checkpoints that are there already would have a time without a
        # zone, and a run that is then asked to stop could not save.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            async_options=at_once,
        )
        with self._errors("cannot be used"):
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=options,
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "checksums": ocp.StandardCheckpointHandler(),
                    "data": PlaceHandler(),
                    "run": ocp.JsonCheckpointHandler(),
                },
            )

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, data: Resumable, *, wait: bool = False) -> None:
        """Copies the state off the devices and writes it in the background.

        Raises:
          UserError: this or the save before it could not be written (a full disk, say).
        """
        if step not in self._manager.all_steps():
            plain = to_plain(jax.block_until_ready(state))
            items = {
                "state": ocp.args.StandardSave(plain),
                "checksums": ocp.args.StandardSave(checksums(plain)),
                "data": SavePlace(data.get_state()),
                "run": ocp.args.JsonSave(self._run),
            }
            self._check_room(plain)
            with self._errors("could not be written"):
                self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        if wait:
            self.wait()

    def restore_latest(self, like: Any, data: Resumable, warn: Callable[[str], None]) -> Any | None:
        """The newest checkpoint that is whole; ``data`` is set to its place.

        Damaged ones are reported, renamed to ``damaged-<step>`` and passed over.

        Args:
          like: the state's shapes, types and shardings (``jax.ShapeDtypeStruct``); the checkpoint
            may have been written on another mesh and by another number of processes. Each process
            reads its own shards and its own place in the data.

        Returns:
          the state, or None when there is no checkpoint at all.

        Raises:
          UserError: the checkpoint is of another run or model, or none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                state, place = self._restore(step, like, data)
            except DamagedError as error:
                warn(f"checkpoint {self.directory / str(step)} is damaged and left out: {error}")
                self._set_aside(step)
                continue
            data.set_state(place)
            return state
        if steps:
            raise UserError(
                f"none of the {len(steps)} checkpoints in {self.directory} is whole; "
                "name another directory to start anew"
            )
        return None

    def wait(self) -> None:
        """Until the last save is on disk.

        Raises:
          UserError: it could not be written.
        """
        with self._errors("could not be written"):
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises the error of a save in the background, without waiting for it.

        Raises:
          UserError: it could not be written.
        """
        with self._errors("could not be written"):
            self._manager.check_for_errors()

    def preempted(self, step: int) -> bool:
        """Whether the scheduler asked a multi-host run to stop; all hosts agree on the step."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits as ``wait`` does and ends the background threads."""
        with self._errors("could not be written"):
            self._manager.close()

    def _check_room(self, plain: Mapping[str, Any]) -> None:
        """A disk that fills up in the middle of a save makes its threads print for pages."""
        try:
            free = shutil.disk_usage(self.directory).free
        except OSError:  # not a local directory
            return
        shards = [s for x in jax.tree.leaves(plain) for s in x.addressable_shards]
        needed = 1.05 * sum(s.data.nbytes for s in shards if s.replica_id == 0) + 2e6
        if needed > free:
            raise UserError(
                f"no room for a checkpoint in {self.directory}: it needs {needed / 1e6:,.1f} MB, "
                f"{free / 1e6:,.1f} MB are free"
            )

    def _restore(self, step: int, like: Any, data: Resumable) -> tuple[Any, Any]:
        plain = to_plain(like)
        with _as_damage():
            meta = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))
            stored = self._manager.item_metadata(step)["state"].tree
        self._check_fits(step, meta["run"], differences(plain, stored))
        sharding = _replicated(like)
        sums = {
            name: jax.ShapeDtypeStruct((), "uint32", sharding=sharding)
            for name in flat_paths(plain)
        }
        items = {
            "state": ocp.args.StandardRestore(plain),
            "checksums": ocp.args.StandardRestore(sums),
            "data": RestorePlace(data.get_state()),
        }
        with _as_damage():
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
        if bad := damaged(found["state"], jax.device_get(found["checksums"])):
            raise DamagedError(f"the numbers of {', '.join(bad[:3])} changed on disk")
        return from_plain(found["state"], like), found["data"]

    def _check_fits(self, step: int, run: Mapping[str, Any], wrong: str) -> None:
        where = self.directory / str(step)
        for name in sorted(set(run) | set(self._run)):
            was, now = run.get(name), self._run.get(name)
            if was != now:
                raise UserError(
                    f"checkpoint {where} was made with {name}={was}, this run has {name}={now}; "
                    "resume with the same, or name another directory"
                )
        if wrong:
            raise UserError(f"checkpoint {where} does not fit this model: {wrong}")

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            target = self.directory / f"damaged-{step}"
            if target.exists():
                target.rmtree()
            (self.directory / str(step)).rename(target)
        barrier("glm_jax.TrainCheckpoints: damaged one set aside")
        self._manager.reload()

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # OSError, ValueError, TensorStore's: all mean the same here
            full = "No space left" in str(error)  # TensorStore names the file at length first
            reason = "No space left on device" if full else first_line(error)
            raise UserError(f"checkpoints in {self.directory} {what}: {reason}") from error


def _replicated(like: Any) -> jax.sharding.Sharding | None:
    """One copy per device of the mesh that ``like`` lies on."""
    sharding = jax.tree.leaves(like)[0].sharding
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding


@contextlib.contextmanager
def _as_damage() -> Iterator[None]:
    """What cannot be read is damage, on every process where it is on one: all go on alike."""
    error = None
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise  # out of device memory, say: the file is not to blame
    except Exception as caught:
        error = caught
    if jax.process_count() > 1:
        bad = np.flatnonzero(multihost_utils.process_allgather(np.asarray(error is not None)))
        if bad.size and error is None:
            raise DamagedError(f"process {bad[0]} cannot read it")
    if error is not None:
        raise DamagedError(first_line(error)) from error
