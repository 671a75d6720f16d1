"""Whether this process takes new requests, and how many it is answering: all that a graceful stop has to know."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import Draining


class Drain:
    """Counts requests in flight. Once begun, a drain never ends; the process does."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.in_flight = 0
        self._began_at: float | None = None

    @property
    def draining(self) -> bool:
        return self._began_at is not None

    @property
    def finished(self) -> bool:
        """Nothing runs any more, or the time for it is over."""
        return self.draining and (self.in_flight == 0 or self.overdue)

    @property
    def overdue(self) -> bool:
        return self.draining and not self.left_of(self.limit_s)

    def left_of(self, seconds: float) -> float:
        """What is left of the drain's first `seconds`; 0 before it began, too."""
        return 0.0 if self._began_at is None else max(0.0, self._began_at + seconds - time.monotonic())

    def begin(self) -> None:
        """Refuse new requests from now on. Only sets a time, so that a signal handler may call it."""
        if self._began_at is None:
            self._began_at = time.monotonic()

    def check(self) -> None:
        """Raises Draining once the drain has begun."""
        if self.draining:
            raise Draining("this replica is stopping; another one answers", retry_after_s=1.0)

    @contextmanager
    def count(self) -> Iterator[None]:
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
