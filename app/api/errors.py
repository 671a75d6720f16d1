"""The one table from error class to status code, and the one shape of every failure.

`STATUS` covers both trees (`app.errors` with `app.api.faults`, and `prompt_store.errors`) and is looked up along the
class's bases, so a new error needs a line only if its status differs from its parent's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.responses import Response

from app import errors as service
from app.api import faults
from prompt_store import errors as store

AnyError = service.ChorusError | store.StoreError

STATUS: Mapping[type[Exception], int] = {
    service.ChorusError: 500,
    service.InvalidRequest: 422,
    service.NotFound: 404,
    service.Conflict: 409,
    service.TooLarge: 413,
    service.Overloaded: 429,
    service.Unavailable: 503,
    service.DeadlineExceeded: 504,
    service.RequestCancelled: 499,
    faults.BadRequest: 400,
    faults.Unauthorized: 401,
    faults.ForeignOrigin: 403,
    faults.InsufficientScope: 403,
    faults.RateLimited: 429,
    faults.RouteNotFound: 404,
    faults.MethodNotAllowed: 405,
    faults.ReadTimeout: 408,
    faults.UnsupportedMediaType: 415,
    faults.MisdirectedRequest: 421,
    faults.HeadersTooLarge: 431,
    store.StoreError: 500,
    store.InvalidName: 422,
    store.InvalidReference: 422,
    store.InvalidBlob: 422,
    store.NotFound: 404,
    store.Conflict: 409,
    store.CorruptBlob: 503,
    store.StoreUnavailable: 503,
    store.StorageFull: 507,
}

# What went wrong inside may name paths or hold an exception's text: callers get these words, the log gets the rest.
INTERNAL = "something went wrong on our side; the log has it under this request id"
FIXED_MESSAGE: Mapping[type[Exception], str] = {
    service.EngineFailure: "the model failed on this row; the log has it under this request id",
    store.StoreUnavailable: "the registry cannot be reached now; read again before you repeat a change",
    store.StorageFailed: "the server's storage cannot be read or written now; read again before you repeat a change",
    store.StorageFull: "the server's storage is full; read again before you repeat a change",
    store.CorruptBlob: "the version's bytes failed verification",
}

TYPE_OF_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    499: "cancelled_error",
    503: "unavailable_error",
    504: "timeout_error",
    507: "unavailable_error",
}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_BRANCHES = frozenset({"str", "int", "float", "bool", "dict", "list", "none", "constrained-int", "constrained-float"})
MESSAGE_CHARS = 1000
PARAM_CHARS = 200


class ErrorDetail(BaseModel):
    """Why something failed: `code` is stable and for programs, `message` is for people, `param` names the field."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    param: str | None
    type: str
    request_id: str | None


class ErrorBody(BaseModel):
    """The body of every failure."""

    model_config = ConfigDict(frozen=True)

    error: ErrorDetail


def status_of(error: BaseException) -> int:
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def detail_of(error: BaseException, request_id: str | None) -> ErrorDetail:
    """The error as its caller may see it: never an input, a path or the text of an unexpected exception."""
    status = status_of(error)
    code, message, param = "internal_error", INTERNAL, None
    if isinstance(error, AnyError):
        code, param = error.code, error.param
        known = status != 500 or type(error) in FIXED_MESSAGE
        message = _fixed_message(error) or (error.message if known else INTERNAL)
    return ErrorDetail(
        code=code,
        message=_text(message, MESSAGE_CHARS),
        param=None if param is None else _text(param, PARAM_CHARS),
        type=TYPE_OF_STATUS.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        request_id=request_id,
    )


def headers_of(error: BaseException) -> dict[str, str]:
    """`Retry-After` where waiting helps; `x-should-retry: false` where the same call can never succeed."""
    status = status_of(error)
    headers: dict[str, str] = {}
    if status in (429, 503):
        seconds = getattr(error, "retry_after_s", None) or 1.0
        headers["retry-after"] = str(max(1, round(seconds)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status == 409:
        headers["x-should-retry"] = "false"
    if isinstance(error, store.RevisionMismatch) and error.current is not None:
        headers["etag"] = f'"{error.current}"'
    return headers


def error_response(error: BaseException, request_id: str | None, headers: Mapping[str, str] | None = None) -> Response:
    body = {"error": detail_of(error, request_id).model_dump()}
    return Response(
        json.dumps(body),  # ASCII only: an error about text must not fail on that text
        status_code=status_of(error),
        headers={"cache-control": "no-store", **headers_of(error), **(headers or {})},
        media_type="application/json",
    )


def from_validation(problems: list[Any]) -> service.InvalidRequest:
    """The first problem pydantic found, as our own error. `input` and `ctx` are dropped: they repeat what was sent."""
    first = problems[0]
    param = _param(first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field"
    elif first["type"] == "missing":
        message = "this field is required"
    more = len({_param(problem["loc"]) for problem in problems}) - 1
    text = f"{param}: {message}" if param else message
    return service.InvalidRequest(text + (f" (and {more} more)" if more else ""), param=param)


def from_pydantic(error: ValidationError) -> service.InvalidRequest:
    return from_validation(error.errors(include_url=False, include_input=False, include_context=False))


def _fixed_message(error: AnyError) -> str | None:
    return next((FIXED_MESSAGE[kind] for kind in type(error).__mro__ if kind in FIXED_MESSAGE), None)


def _param(location: tuple[int | str, ...]) -> str | None:
    """`requests.2.input` from pydantic's location: without the source, without the names of a union's branches."""
    parts = [str(part) for part in location]
    if parts and parts[0] in ("body", "query", "path", "header"):
        parts = parts[1:]
    return ".".join(part for part in parts if _PLAIN_NAME.match(part) and part not in _BRANCHES)[:PARAM_CHARS] or None


def _text(text: str, limit: int) -> str:
    """Bounded, and always encodable."""
    clean = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
