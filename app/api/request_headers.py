"""Request headers that routes read by themselves: as the contract names them, and as they are read."""

from __future__ import annotations

import re
from typing import Any

from starlette.datastructures import Headers

from app.errors import InvalidRequest

EVENT_ID = r"^[0-9]{1,19}(-[0-9]{1,19})?$"
"""The id of an entry in a stream of events: two numbers, each of which 64 bits hold."""

ETAG = r'^"[1-9][0-9]{0,17}"$'
"""Of an alias: its revision."""

_KEY = r"^[!-~]{1,255}$"


def header(name: str, description: str, pattern: str) -> dict[str, Any]:
    """One optional header; `pattern` is a regular expression as JSON Schema knows them."""
    schema = {"type": "string", "pattern": pattern}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


IF_MATCH = header("If-Match", "Only if the alias still has this ETag.", ETAG)
IF_NONE_MATCH = header("If-None-Match", "Only if there is no such alias yet; not beside If-Match.", r"^\*$")
PRECONDITIONS = {"parameters": [IF_MATCH, IF_NONE_MATCH]}
IDEMPOTENCY_KEY = header("Idempotency-Key", "Submitted again with this key it is the same job.", _KEY)
LAST_EVENT_ID = header("Last-Event-ID", "Go on behind this event; it goes before `after`.", EVENT_ID)


def idempotency_key(headers: Headers) -> str | None:
    """Raises InvalidRequest for what is no key."""
    given = headers.get("idempotency-key")
    if given is not None and not re.fullmatch(_KEY, given):
        raise InvalidRequest("an Idempotency-Key has 1 to 255 printable characters", param="idempotency-key")
    return given


def last_event_id(headers: Headers) -> str | None:
    """Raises InvalidRequest for what is no event's id."""
    given = headers.get("last-event-id")
    if given is not None and not re.fullmatch(EVENT_ID, given):
        raise InvalidRequest("Last-Event-ID is not an event's id", param="last-event-id")
    return given
