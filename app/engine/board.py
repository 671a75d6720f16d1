"""The event loop's list of rows in flight: whose queue an event of the engine belongs to, and what it says of load."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from app.engine.admission import Admission
from app.engine.engine import ROW_FAILED
from app.engine.flights import Flight
from app.engine.strikes import Strikes
from app.engine.types import EngineStats, Event

# Endings of rows that may have ended in the queue: no measure of how fast work gets done.
_UNWORKED = ("timeout", "cancelled", "drain", "error")


class FlightBoard:
    """Flights by request. Used inside the event loop alone, as are the `stats` of tokens' and rows' times."""

    def __init__(self, admission: Admission, stats: EngineStats, strikes: Strikes) -> None:
        self._admission, self._stats, self._strikes = admission, stats, strikes
        self._flights: dict[str, list[Flight]] = {}
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def request_ids(self) -> list[str]:
        return list(self._flights)

    def add(self, flights: Sequence[Flight]) -> None:
        """Take in rows, those of one request in their order. Raises Overloaded, see `Admission`."""
        self._admission.queue(sum(flight.cost for flight in flights))
        for flight in flights:
            self._flights.setdefault(flight.request.id, []).append(flight)
            self._quiet.clear()

    def remove(self, flights: Sequence[Flight]) -> set[str]:
        """Forget rows whose caller has his answer, or has gone. Returns the requests that have not ended."""
        for flight in flights:
            self._flights.pop(flight.request.id, None)
            if not flight.begun:
                self._admission.begin(flight.cost)
        if not self._flights:
            self._quiet.set()
        return {flight.request.id for flight in flights if not flight.ended}

    def hand_out(self, steps: Sequence[tuple[float, Sequence[Event]]]) -> None:
        """Give each event to its row, those of each step with the time when they happened; those of rows that nobody
        waits for are dropped."""
        for at, events in steps:
            self._hand_out_one(at, events)

    def _hand_out_one(self, now: float, events: Sequence[Event]) -> None:
        for event in events:
            flights = self._flights.get(event.request_id)
            if flights is None:
                continue
            flight = flights[event.row]
            if not flight.begun:
                flight.begun = True
                self._admission.begin(flight.cost)
            if event.began is not None:
                flight.prefilled = event.began, now
            if event.token is not None:
                if flight.token_at is not None:
                    self._stats.inter_token_seconds.add(now - flight.token_at)
                flight.token_at = now
            if event.finish is not None:
                self._end(flight, event, now)
            flight.events.put_nowait(event)

    def _end(self, flight: Flight, event: Event, now: float) -> None:
        flight.ended, flight.ended_at = True, now
        if flight.prefilled is not None and flight.token_at is not None:
            self._stats.decode_seconds.add(now - flight.prefilled[1])
        if event.error == ROW_FAILED and not flight.request.coupled:  # there any member may be the cause
            self._strikes.failed(flight.asked)
        if event.finish not in _UNWORKED or flight.token_at is not None:
            self._admission.finish(flight.cost)

    async def quiet_within(self, seconds: float) -> bool:
        """Whether nothing is in flight any more, after waiting for at most `seconds`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), seconds)
        return self._quiet.is_set()
