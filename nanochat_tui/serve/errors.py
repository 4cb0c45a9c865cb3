"""Failures as OpenAI's clients expect them: an `error` object with the status that fits.

Nothing of the machine gets into a message: what is said is either written here or meant for the person who asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Route

from nanochat_tui.engine.generate.scheduler import QueueFull
from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

RETRY_SECONDS = 2
"""Said to clients who come while every place is taken or the model is loading."""


ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Anthropic's types of errors by status."""


def is_anthropic(path: str) -> bool:
    """Return whether a path is one of Anthropic's routes."""
    return path.removeprefix("/v1").startswith("/messages")


class ErrorDetail(BaseModel):
    """What went wrong, for people (`message`) and for programs (the rest)."""

    message: str
    type: str
    param: str | None = None
    """The field of the request that is at fault."""
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail = Field(description="What went wrong.")


class ApiError(Exception):
    """A failure with its HTTP status; `retry_after` in seconds tells a client to come again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(message=message, type=kind, param=param, code=code)
        self.retry_after = retry_after

    def body(self, path: str = "") -> dict[str, Any]:
        """The JSON of the answer; path: the route that was asked, for Anthropic's have a shape of their own."""
        if is_anthropic(path):
            kind = ANTHROPIC_KINDS.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": self.detail.message}}
        return {"error": self.detail.model_dump()}

    def response(self, headers: dict[str, str] | None = None, path: str = "") -> JSONResponse:
        """The answer itself, in the shape of the route that was asked."""
        extra = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        return JSONResponse(self.body(path), self.status, {**(headers or {}), **extra})


def unavailable(message: str, code: str) -> ApiError:
    """The failure while no reply can be given to anybody."""
    return ApiError(503, message, kind="unavailable_error", code=code, retry_after=RETRY_SECONDS)


def internal_error() -> ApiError:
    """The failure that is our own fault; what happened goes to the log and not to the client."""
    return ApiError(500, "the server failed to answer; its log says why", kind="server_error", code="internal_error")


def from_user_error(error: UserError) -> ApiError:
    """Translate an error of the engine or the tokenizer that the client can fix."""
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), kind="rate_limit_error", code="queue_full", retry_after=RETRY_SECONDS)
    return ApiError(400, str(error))


def from_validation(problems: Sequence[Any]) -> ApiError:
    """Translate what pydantic found: the first problem, with the field it is in."""
    first = problems[0]
    place = [str(part) for part in first.get("loc", ()) if part != "body"]
    kind = str(first.get("type", ""))
    message = str(first.get("msg", "invalid"))
    if kind == "json_invalid":
        reason = display_safe(str((first.get("ctx") or {}).get("error", message)))
        return ApiError(400, f"the body is not valid JSON: {reason}", code="invalid_json")
    if kind == "missing" and not place:
        return ApiError(400, "the body is empty; send a JSON object", code="invalid_json")
    if kind in ("unsupported_parameter", "invalid_parameter"):
        name = str((first.get("ctx") or {}).get("name", ""))
        return ApiError(400, message, param=name, code=kind if kind == "unsupported_parameter" else None)
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "give a JSON object"
    if kind == "string_too_long":
        message = f"{first['ctx']['max_length']} characters at most"
    if kind == "too_long":
        message = f"{first['ctx']['max_length']} entries at most"
    param = ".".join(place)
    text = message[:1].lower() + message[1:]
    return ApiError(400, f"{display_safe(param)}: {text}" if param else text, param=display_safe(param) or None)


def install_handlers(app: FastAPI, routes: Sequence[Route]) -> None:
    """Let the application answer every exception with an error object; those of `routes` are named in a 404."""
    named = ", ".join(f"{method} {route.path_format}" for route in routes for method in sorted(route.methods or ()))
    unknown = f"there is no such route; this server has {named}; GET /openapi.json describes them"

    @app.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> JSONResponse:
        return error.response(path=request.url.path)

    @app.exception_handler(UserError)
    async def _user(request: Request, error: UserError) -> JSONResponse:
        return from_user_error(error).response(path=request.url.path)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return from_validation(error.errors()).response(path=request.url.path)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        allowed = (error.headers or {}).get("Allow", "another")
        known = {
            400: ("the body is not valid JSON in UTF-8", "invalid_json"),
            404: (unknown, "not_found"),
            405: (f"this route takes {allowed}, not {display_safe(request.method)}", "method_not_allowed"),
        }
        message, code = known.get(error.status_code, ("the request cannot be read", None))
        headers = dict(error.headers) if error.headers else None
        return ApiError(error.status_code, message, code=code).response(headers, request.url.path)
