"""The FastAPI application: routes, the guard in front of them, and the handlers that give every error its one shape.

It holds no service: `app.main` puts them in `app.state.services` when the application starts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from app import __version__
from app.api import faults
from app.api.auth import OPEN_PATHS, Access
from app.api.body import EdgeLimits
from app.api.drain import Drain
from app.api.errors import ErrorBody, error_response, from_validation
from app.api.guard import Guard
from app.api.routes import adapters, completions, datasets, docs, generate, health, tasks, train, vectors, versions
from app.errors import ChorusError
from app.settings import Settings
from app.telemetry import Metrics, request_id
from app.telemetry.tracing import Tracer
from prompt_store import StoreError

DESCRIPTION = (
    "One frozen language model, many learned prompts. Errors have one shape: "
    '`{"error": {"code", "message", "param", "type", "request_id"}}`.'
)
ROUTERS = (generate, completions, tasks, versions, adapters, vectors, datasets, train, health, docs)


def build_application(
    settings: Settings,
    *,
    access: Access,
    drain: Drain,
    metrics: Metrics,
    limits: EdgeLimits,
    tracer: Tracer,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
) -> FastAPI:
    app = FastAPI(
        title="Chorus",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        separate_input_output_schemas=False,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    for module in ROUTERS:
        app.include_router(module.router)
    app.router.routes.append(docs.assets)
    app.add_middleware(
        Guard, settings=settings, access=access, drain=drain, metrics=metrics, limits=limits, tracer=tracer
    )
    app.add_exception_handler(ChorusError, _known)
    app.add_exception_handler(StoreError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    _describe_key(app)
    return app


async def _known(_: Request, error: Exception) -> Response:
    return error_response(error, request_id.get())


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(from_validation(list(error.errors())), request_id.get())


async def _http(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allow = _allowed(request.scope["path"])
        return error_response(faults.MethodNotAllowed(f"this path takes {allow}"), request_id.get(), {"allow": allow})
    if error.status_code == 404:
        return error_response(faults.RouteNotFound("there is nothing at this path"), request_id.get())
    return error_response(faults.BadRequest("the request could not be read"), request_id.get())


def _allowed(path: str) -> str:
    """All methods of a path, over all of its routes; Starlette names those of the first alone."""
    routes = [route for module in ROUTERS for route in module.router.routes if isinstance(route, APIRoute)]
    found = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return ", ".join(sorted(found or {"GET"}))


def _describe_key(app: FastAPI) -> None:
    """Say in the contract that calls carry a bearer key, where one is set, and which never do."""
    generate_schema = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate_schema()
        schema.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        for path in OPEN_PATHS:
            for call in schema["paths"][path].values():
                call["security"] = []
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
