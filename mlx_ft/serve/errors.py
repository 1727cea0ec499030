"""Every error as OpenAI's clients know it: {"error": {message, type, param, code}}."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mlx_ft.engine.request import Busy, Closed, Replaced, Unknown
from mlx_ft.errors import (
    AdapterError,
    ConfigError,
    DataError,
    InUseError,
    MlxFtError,
    ModelError,
    UserError,
)
from mlx_ft.serve.jobs import Conflict, Full
from mlx_ft.serve.names import BadName
from mlx_ft.serve.store import Missing, Taken

logger = logging.getLogger(__name__)

# The first kind that an error is counts: (kind, status, code, seconds to wait).
KINDS: Sequence[tuple[type[MlxFtError], int, str, int | None]] = (
    (Missing, 404, "not_found", None),
    (Unknown, 404, "model_not_found", None),
    (Taken, 409, "already_exists", None),
    (Conflict, 409, "conflict", None),
    (InUseError, 409, "in_use", None),
    (Closed, 503, "away", 5),
    (Replaced, 503, "adapter_replaced", 1),
    (Busy, 429, "queue_full", 1),
    (Full, 429, "queue_full", 60),
    (BadName, 400, "invalid_name", None),
    (AdapterError, 400, "invalid_adapter", None),
    (DataError, 400, "invalid_data", None),
    (ModelError, 400, "invalid_model", None),
    (ConfigError, 400, "invalid_value", None),
    (UserError, 400, "invalid_request", None),
    (MlxFtError, 500, "failed", None),
)
CODES = {
    401: "invalid_api_key", 404: "unknown_path", 405: "method_not_allowed", 408: "too_slow",
    413: "too_large", 415: "unsupported_media_type",
}  # fmt: skip
PYDANTIC = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter",
            "json_invalid": "invalid_json"}  # fmt: skip
SHOWN = 5  # faults of one request


class Refused(UserError):
    """A request that is not carried out, with what its client is told."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        code: str | None = None,
        param: str | None = None,
        wait: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.wait = status, code, param, wait


class Away(Refused):
    """The model is not in memory for a while. wait: seconds."""

    def __init__(self, message: str, wait: int) -> None:
        super().__init__(message, 503, code="away", wait=wait)


class Detail(BaseModel):
    """What went wrong. param: the field of the request; code: for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Of every answer that is an error."""

    error: Detail


# For the OpenAPI document.
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is refused."},
    "5XX": {"model": ErrorBody, "description": "The server cannot answer, or not now."},
}


def body(status: int, message: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """An error's content."""
    kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
            429: "rate_limit_error"}.get(status)  # fmt: skip
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def told(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(status, content, headers) of an error."""
    if isinstance(error, Refused):
        headers = {} if error.wait is None else {"retry-after": str(error.wait)}
        return error.status, body(error.status, str(error), error.code, error.param), headers
    for kind, status, code, wait in KINDS:
        if isinstance(error, kind):
            headers = {} if wait is None else {"retry-after": str(wait)}
            return status, body(status, str(error), code), headers
    if isinstance(error, MemoryError):
        return 503, body(503, "there is not enough memory for this", "out_of_memory"), {}
    return 500, body(500, "the server has failed; its log says why", "internal_error"), {}


def install(app: FastAPI) -> None:
    """Have the app answer all its errors so."""
    app.add_exception_handler(MlxFtError, _known)
    app.add_exception_handler(MemoryError, _known)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unknown)


def answer(status: int, content: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    """JSON in ASCII: whatever text a client has sent, its echo can be sent back."""
    return Response(json.dumps(content), status, dict(headers), "application/json")


async def _known(_: Request, error: Exception) -> Response:
    return answer(*told(error))


async def _unknown(request: Request, error: Exception) -> Response:
    logger.error("%s %s: %s", request.method, request.url.path, error)  # uvicorn has the traceback
    status, content, headers = told(error)
    return answer(status, content, {**headers, "connection": "close"})  # uvicorn ends it, too


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    message = {404: "there is no such path; /docs lists them"}.get(status, str(error.detail))
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if status == 405 and (methods := _methods(request)):
        headers["allow"] = methods  # each route alone names only its own
    return answer(status, body(status, message, CODES.get(status)), headers)


def _methods(request: Request) -> str:
    """All methods of the request's path, as the OpenAPI document has them."""
    asked, known = request.scope["path"], request.app.openapi()["paths"]
    if asked in known:  # goes before any path with a name in it
        return ", ".join(sorted(known[asked])).upper()
    found = set[str]()
    for path, methods in known.items():
        pattern = re.sub(r"\\{[^/]*\\}", "[^/]+", re.escape(path))
        if re.fullmatch(pattern, asked):
            found |= {method.upper() for method in methods}
    return ", ".join(sorted(found))


async def _invalid(request: Request, error: Exception) -> Response:
    """400 as OpenAI says it, 422 on the other paths."""
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    first = faults[0]
    status = 400 if request.url.path.startswith("/v1/") else 422
    lines = [_fault(fault) for fault in faults[:SHOWN]]
    if more := len(faults) - len(lines):
        lines.append(f"and {more} more")
    code = PYDANTIC.get(first["type"], "invalid_value")
    return answer(status, body(status, "; ".join(lines), code, _place(first["loc"])), {})


def _fault(fault: Mapping[str, Any]) -> str:
    place = _place(fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"Unrecognized request argument supplied: {place}"
    if fault["type"] == "missing":
        return f"Missing required parameter: {place or 'the body'}"
    if fault["type"] == "json_invalid":
        return f"the body is not JSON: {fault['ctx']['error']}"
    return f"{place or 'the body'}: {fault['msg']}"


def _place(parts: Sequence[Any]) -> str | None:
    """`messages[0].role` of ("body", "messages", 0, "role")."""
    place = ""
    for part in parts[1:]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    return place.removeprefix(".")[:200] or None
