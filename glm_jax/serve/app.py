"""The HTTP server: routes, and what they need."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from glm_jax.serve import errors
from glm_jax.serve.chat import chat_completions
from glm_jax.serve.completions import completions
from glm_jax.serve.engine import Engine
from glm_jax.serve.guard import Guard
from glm_jax.serve.page import page_response
from glm_jax.serve.parameters import ChatRequest, CompletionRequest
from glm_jax.serve.served import Served


def make_app(
    engine: Engine, served: Served, *, keys: Sequence[str] = (), most_bytes: int = 4 << 20
) -> FastAPI:
    """The server over an engine that has been started; it stops the engine when it ends.

    Args:
      keys: API keys; none: everyone is let in.
      most_bytes: of a request's body.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.stop()

    # The pages that FastAPI makes of the schema load their scripts from elsewhere.
    app = FastAPI(title="glm_jax", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Guard, keys=keys, most_bytes=most_bytes, metrics=engine.metrics)
    errors.install(app, engine.metrics)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http: Request) -> Any:
        return _out(await chat_completions(engine, served, body, http))

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, http: Request) -> Any:
        return _out(await completions(engine, served, body, http))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_about(served)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        served.check_model(name)
        return _about(served)

    @app.get("/health")
    async def health() -> JSONResponse:
        state = "failed" if engine.broken else "draining" if engine.draining else "ok"
        body = {"status": state, "model": served.name} | engine.load()
        return JSONResponse(body, 200 if state == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        engine.load()
        return Response(engine.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def chat_page() -> HTMLResponse:
        return page_response()

    return app


def _out(answer: Any) -> Any:
    """Without FastAPI's walk through every field: the answer is JSON already."""
    return JSONResponse(answer) if isinstance(answer, dict) else answer


def _about(served: Served) -> dict[str, Any]:
    return {
        "id": served.name, "object": "model", "created": served.created, "owned_by": "glm_jax",
        "max_model_len": served.length, "chat": served.format is not None,
    }  # fmt: skip
