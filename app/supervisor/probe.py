"""Asking the API on this machine how it is. Plain HTTP without proxies; no answer is an answer."""

from __future__ import annotations

import http.client
import json
from typing import Any

from app.supervisor.address import ANY_HOSTS

TIMEOUT_S = 3.0


def get(host: str, port: int, path: str, *, key: str | None = None, timeout_s: float = TIMEOUT_S) -> tuple[int, Any]:
    """Status and JSON of `GET path`; (0, None) when nothing answers in time, and None for a body that is not JSON."""
    connection = http.client.HTTPConnection(ANY_HOSTS.get(host, host), port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()
    try:
        return response.status, json.loads(body)
    except ValueError:
        return response.status, None
