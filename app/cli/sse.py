"""Reading server-sent events: text in, lines, events out."""

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


def split_lines(chunks: Iterable[str]) -> Iterator[str]:
    """The whole lines of a stream's text. Only CR LF, LF and CR end one: Unicode's other line breaks are text.

    A line is given as soon as its end is there; what follows the last end is none.
    """
    rest, ended = "", False  # ended: by a CR, whose LF may be the next chunk's first
    for chunk in chunks:
        if not chunk:
            continue
        text = chunk.removeprefix("\n") if ended else chunk
        ended = text.endswith("\r")
        *lines, rest = (rest + text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        yield from lines


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
