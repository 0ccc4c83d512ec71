"""Errors in OpenAI's form: every one is JSON that says what is wrong and what would be right."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from glm_jax.errors import UserError
from glm_jax.serve.engine import Draining
from glm_jax.serve.metrics import Metrics
from glm_jax.serve.schedule import QueueFull

log = logging.getLogger(__name__)
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer with this status; ``param`` names the field, ``code`` is for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str = ""):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code or None


def body_of(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def install(app: FastAPI, metrics: Metrics) -> None:
    """Makes every exception an answer."""

    def answer(status: int, message: str, param=None, code=None, headers=None) -> JSONResponse:
        metrics.refused.labels(str(status)).inc()
        return JSONResponse(body_of(status, message, param, code), status, headers)

    @app.exception_handler(ApiError)
    async def on_api(_: Request, error: ApiError):
        return answer(error.status, str(error), error.param, error.code)

    @app.exception_handler(UserError)
    async def on_user(_: Request, error: UserError):
        return answer(400, str(error))

    @app.exception_handler(QueueFull)
    async def on_full(_: Request, error: QueueFull):
        after = {"Retry-After": str(error.seconds)}
        return answer(429, str(error), code="queue_full", headers=after)

    @app.exception_handler(Draining)
    async def on_draining(_: Request, error: Draining):
        return answer(503, str(error), headers={"Retry-After": "10"})

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError):
        return answer(400, *_first(error))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException):
        message = error.detail
        if error.status_code in (404, 405):
            message = f"there is no {request.method} {request.url.path}; see /openapi.json"
        elif error.status_code == 400:  # of FastAPI, for bytes that are no text or nested too deep
            message = "the body is no JSON that can be read"
        return answer(error.status_code, message)

    @app.exception_handler(Exception)
    async def on_bug(_: Request, error: Exception):
        log.error("a request failed", exc_info=error)
        return answer(500, "the server failed to answer; its log says why")


def _first(error: RequestValidationError) -> tuple[str, str | None]:
    """The first of pydantic's complaints, as message and field."""
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"][1:] if isinstance(part, str | int))
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "json_invalid":
        why = found.get("ctx", {}).get("error", "")
        return f"the body is no JSON: {why}".rstrip(": "), None
    if found["type"] in ("missing", "model_attributes_type", "dict_type") and not place:
        return "the body must be a JSON object, with Content-Type: application/json", None
    return (f"{place}: {message}" if place else message), place or None
