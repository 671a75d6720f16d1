"""What each route asks of a key. A route that is not here asks for `admin`, and a test fails until it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from starlette.routing import compile_path

from app.access import Scope

Need = Scope | Literal["any", "none"]
OPEN_PATHS = frozenset({"/livez", "/readyz"})
ASSETS = "/docs/swagger-ui/"

ROUTES: Mapping[tuple[str, str], Need] = {
    ("GET", "/livez"): "none",
    ("GET", "/readyz"): "none",
    # any key reads what runs and what there is
    ("GET", "/health"): "any",
    ("GET", "/metrics"): "any",
    ("GET", "/docs"): "any",
    ("GET", "/docs/docs.js"): "any",
    ("GET", "/openapi.json"): "any",
    ("GET", "/v1/models"): "any",
    ("GET", "/v1/models/{model}"): "any",
    ("GET", "/v1/tasks"): "any",
    ("GET", "/v1/tasks/{task}"): "any",
    ("GET", "/v1/tasks/{task}/versions"): "any",
    ("GET", "/v1/tasks/{task}/versions/{number}"): "any",
    ("GET", "/v1/tasks/{task}/versions/{number}/vectors"): "any",
    ("GET", "/v1/tasks/{task}/aliases/{alias}"): "any",
    # answers
    ("POST", "/v1/tasks/{ref}/generate"): "generate",
    ("POST", "/v1/generate"): "generate",
    ("POST", "/v1/completions"): "generate",
    # rows and jobs
    ("GET", "/v1/datasets"): "train",
    ("GET", "/v1/datasets/{name}"): "train",
    ("PUT", "/v1/datasets/{name}"): "train",
    ("POST", "/v1/train"): "train",
    ("GET", "/v1/train"): "train",
    ("GET", "/v1/train/{id}"): "train",
    ("POST", "/v1/train/{id}/cancel"): "train",
    ("GET", "/v1/train/{id}/events"): "train",
    ("POST", "/v1/tasks/{task}/versions/{number}/leave-one-out"): "train",
    ("GET", "/v1/tasks/{task}/versions/{number}/adapter"): "train",  # all that was learned
    # what others rely on
    ("PUT", "/v1/tasks/{task}"): "admin",
    ("DELETE", "/v1/tasks/{task}"): "admin",
    ("POST", "/v1/tasks/{task}/versions"): "admin",
    ("DELETE", "/v1/tasks/{task}/versions/{number}"): "admin",
    ("PUT", "/v1/tasks/{task}/aliases/{alias}"): "admin",
    ("DELETE", "/v1/tasks/{task}/aliases/{alias}"): "admin",
}


def needed(method: str, path: str) -> Need:
    """What a call needs: `path` as it came, percent signs decoded."""
    route = route_of(method, path)
    if route is not None:
        return ROUTES["GET" if method == "HEAD" else method, route]
    return "any" if path.startswith(ASSETS) and method in ("GET", "HEAD") else "admin"


def route_of(method: str, path: str) -> str | None:
    """The listed route that a call is for, None where there is none."""
    method = "GET" if method == "HEAD" else method
    if (method, path) in ROUTES and "{" not in path:
        return path
    return next((route for pattern, route in _PATTERNS.get(method, ()) if pattern.match(path)), None)


_PATTERNS: dict[str, list[tuple[re.Pattern[str], str]]] = {}
for _method, _path in ROUTES:
    if "{" in _path:
        _PATTERNS.setdefault(_method, []).append((compile_path(_path)[0], _path))
