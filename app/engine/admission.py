"""The bound of the queue: how many rows and tokens may wait, and what a refused caller is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.engine.config import EngineConfig
from app.engine.load import DrainRate
from app.errors import Overloaded


class Admission:
    """Counts the rows that are in, running or waiting, and the tokens of those that have not begun. A queue that is
    empty takes any one group, however large."""

    def __init__(self, config: EngineConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._rate = config, DrainRate(clock)
        self.rows = self.tokens = 0

    @property
    def waiting(self) -> int:
        """Rows beyond those that can run at once."""
        return max(0, self.rows - self._config.max_rows)

    def check_room(self) -> None:
        """Raises Overloaded where no group at all, however small, could be taken."""
        limit = self._config.max_queued_rows
        if self.waiting >= limit:
            raise self._refusal(f"{self.waiting} rows are waiting; {limit} may")

    @contextmanager
    def places(self, rows: int) -> Iterator[None]:
        """Hold places for a group of `rows`, before any work is spent on it. Raises Overloaded."""
        limit = self._config.max_queued_rows
        self.check_room()
        if self.waiting and self.rows + rows - self._config.max_rows > limit:
            raise self._refusal(f"{self.waiting} rows are waiting; {limit} may")
        self._rate.begin()
        self.rows += rows
        try:
            yield
        finally:
            self.rows -= rows
            if not self.rows:
                self._rate.rest()

    def queue(self, tokens: int) -> None:
        """Count a group's work, places for whose rows are held. Raises Overloaded."""
        limit = self._config.max_queued_tokens
        if self.waiting and self.tokens and self.tokens + tokens > limit:
            raise self._refusal(f"{self.tokens} tokens are waiting; {limit} may")
        self.tokens += tokens

    def begin(self, tokens: int) -> None:
        """A row has left the queue: it runs, or will never."""
        self.tokens -= tokens

    def finish(self, tokens: int) -> None:
        """A row that ran has ended."""
        self._rate.count(tokens)

    def _refusal(self, message: str) -> Overloaded:
        return Overloaded(message, retry_after_s=self._rate.seconds_for(self.tokens))
