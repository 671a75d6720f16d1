"""Reading server-sent events: lines in, events out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

DONE = "[DONE]"


@dataclass(frozen=True)
class ServerEvent:
    """One event. `id` is where a later connection goes on; None for an event without one."""

    data: str
    id: str | None = None
    name: str | None = None

    def json(self) -> dict[str, Any]:
        found = json.loads(self.data)
        return found if isinstance(found, dict) else {"value": found}


def read_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """The events of a stream up to `[DONE]` or its end. Comments (pings) and events without data are left out."""
    data: list[str] = []
    place: str | None = None
    name: str | None = None
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data == [DONE]:
                return
            if data:
                yield ServerEvent("\n".join(data), place, name)
            data, name = [], None
        elif field == "data":
            data.append(value)
        elif field == "id":
            place = value
        elif field == "event":
            name = value
