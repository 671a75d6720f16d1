"""What `/metrics` says of training: read from Redis every few seconds, so that a scrape never waits for Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from app.concurrency import running_beside
from app.errors import ChorusError

if TYPE_CHECKING:
    from app.training import JobStore

READ_S = 5.0

log = logging.getLogger(__name__)


class JobReadings:
    """The latest figures; none while Redis is out of reach, so that nobody takes old ones for new."""

    def __init__(self, jobs: JobStore) -> None:
        self._jobs = jobs
        self._latest: Mapping[str, float] = {}

    def __call__(self) -> Mapping[str, float]:
        return self._latest

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Read now and again until the block ends."""
        async with running_beside(self._follow(), "read job figures"):
            yield

    async def _follow(self) -> None:
        while True:
            await self.read()
            await asyncio.sleep(READ_S)

    async def read(self) -> None:
        try:
            self._latest = await asyncio.to_thread(self._jobs.census)
        except ChorusError as error:
            log.debug("jobs not counted", extra={"code": error.code})
            self._latest = {}
        except Exception:
            log.warning("jobs not counted", exc_info=True)
            self._latest = {}
