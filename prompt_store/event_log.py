"""The event stream of the in-memory registry: the part of a Redis stream that the store uses."""

from __future__ import annotations

from typing import Literal

from prompt_store.models import Event

EventKind = Literal["task", "task_deleted", "version", "version_state", "alias", "alias_deleted"]


class EventLog:
    """Events in the order they were added. Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def add(
        self,
        epoch: int,
        kind: EventKind,
        task: str,
        task_id: str,
        at: float,
        *,
        version: int | None = None,
        alias: str | None = None,
    ) -> None:
        place = f"{len(self._events) + 1}-0"
        self._events.append(
            Event(id=place, epoch=epoch, kind=kind, task=task, task_id=task_id, version=version, alias=alias, at=at)
        )

    def last_id(self) -> str:
        """The id of the newest event; `0` when there is none."""
        return self._events[-1].id if self._events else "0"

    def behind(self, after: str) -> list[Event]:
        """Events with a greater id than `after`, oldest first."""
        return self._events[int(after.partition("-")[0]) :]

    def holds(self, place: str) -> bool:
        """Whether `place` is the id of an event, or the beginning."""
        return int(place.partition("-")[0]) <= len(self._events)

    def has_news(self, after: str) -> bool:
        return len(self._events) > int(after.partition("-")[0])
