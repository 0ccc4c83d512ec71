"""uvicorn around the app: the socket, signals, draining."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from glm_jax.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A socket bound before the model is loaded: a taken port is known at once.

    Raises:
      UserError: the address is taken or is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}; choose another "
            "--port or --host"
        ) from None
    return made


class Server(uvicorn.Server):
    """uvicorn's, which says when connections are taken."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def make_server(
    app: FastAPI,
    *,
    drain_seconds: int,
    log_requests: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> Server:
    """The server; on SIGTERM it closes its socket and waits for the answers being written.

    Args:
      ready: called when the first connection can be made.
    """
    level = "info" if log_requests else "warning"
    return Server(
        uvicorn.Config(
            app,
            log_level=level,
            access_log=log_requests,
            timeout_graceful_shutdown=drain_seconds,
            server_header=False,
            backlog=1024,
        ),
        ready,
    )


def serve(
    app: FastAPI,
    listening: socket.socket,
    *,
    drain_seconds: int,
    log_requests: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serves until SIGTERM or SIGINT, and returns when nobody is being answered."""
    # uvicorn raises the signal that ended it once more, when its own handlers are gone again: a
    # server that has drained ends well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    make_server(app, drain_seconds=drain_seconds, log_requests=log_requests, ready=ready).run(
        [listening]
    )
