"""Joining the processes of a run on several hosts, before anything else of JAX is used."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time
from collections.abc import Iterator
from typing import Any, Protocol

import jax

from glm_jax.errors import UserError, first_line
from train import watch


@dataclasses.dataclass(frozen=True)
class Hosts:
    """How the processes of a run find and watch each other.

    On Cloud TPU, GKE, Slurm and under MPI JAX finds all of the first three itself.

    Raises:
      ValueError: values that do not fit together.
    """

    coordinator: str = ""
    """host:port on which process 0 listens. Naming it implies --distributed."""
    processes: int | None = None
    """How many processes the run has."""
    process: int | None = None
    """Which of them this one is, from 0."""
    connect_seconds: int = 300
    """How long to wait for the coordinator and for all the others at the start."""
    silent_seconds: int = 30
    """The run ends, naming the process, when one has not been heard of for so long."""
    stalled_seconds: int = 1800
    """The run ends, naming who is behind, when no step is finished for so long, which includes
    compilation, evaluation and checkpoints. 0: never."""

    def __post_init__(self) -> None:
        given = (self.processes is not None, self.process is not None)
        if self.coordinator and not all(given):
            raise ValueError("a coordinator needs --hosts.processes and --hosts.process too")
        if any(given) and not self.coordinator:
            raise ValueError("--hosts.processes and --hosts.process need --hosts.coordinator")
        port = self.coordinator.rpartition(":")[2]
        if self.coordinator and not (port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(f"coordinator {self.coordinator} is not host:port")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes is {self.processes}; it must be 1 or more")
        if self.process is not None and not 0 <= self.process < (self.processes or 1):
            raise ValueError(f"process {self.process} is not one of 0 to {self.processes - 1}")
        for name, least in (("connect_seconds", 1), ("silent_seconds", 5), ("stalled_seconds", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")


class Options(Protocol):
    @property
    def distributed(self) -> bool: ...

    @property
    def hosts(self) -> Hosts: ...


@contextlib.contextmanager
def joined(args: Options) -> Iterator[None]:
    """Joins the other processes, before anything else of JAX is used, and watches them inside.

    Raises:
      UserError: the others cannot be found or reached.
    """
    hosts = args.hosts
    if not (args.distributed or hosts.coordinator):
        yield
        return
    _initialize(hosts)
    with watch.watching(hosts.silent_seconds, hosts.stalled_seconds):
        yield


def _initialize(hosts: Hosts) -> None:
    options: dict[str, Any] = {}
    if hosts.coordinator:
        options = {
            "coordinator_address": hosts.coordinator,
            "num_processes": hosts.processes,
            "process_id": hosts.process,
            "cluster_detection_method": "deactivate",
        }
        _reach(hosts)
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=hosts.connect_seconds,
            heartbeat_timeout_seconds=watch.heartbeat_timeout(hosts.silent_seconds),
        )
    except ValueError as error:
        raise UserError(
            f"--distributed: no Cloud TPU, GKE, Slurm or MPI job was found ({first_line(error)}); "
            "name --hosts.coordinator, --hosts.processes and --hosts.process"
        ) from None
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:
        where = hosts.coordinator or "that JAX found"
        raise UserError(f"coordinator {where} could not be joined: {first_line(error)}") from None


def _reach(hosts: Hosts) -> None:
    """JAX ends the process without a readable line where nobody listens: try first."""
    if hosts.process == 0:
        return
    host, _, port = hosts.coordinator.rpartition(":")
    until, reason = time.monotonic() + hosts.connect_seconds, ""
    while time.monotonic() < until:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.2)
    raise UserError(
        f"coordinator {hosts.coordinator} was not reached within {hosts.connect_seconds} s "
        f"({reason}); is process 0 running there?"
    )
