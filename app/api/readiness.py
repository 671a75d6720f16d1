"""Whether this replica can answer: a real one-token run, at most once a second however often it is asked."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from app.api.drain import Drain
from app.api.faults import NotReady
from app.errors import Overloaded
from app.registry import Registry

if TYPE_CHECKING:
    from app.engine import EngineService

FRESH_S = 1.0
PATIENCE_S = 5.0


class Readiness:
    def __init__(self, registry: Registry, engine: EngineService, drain: Drain) -> None:
        self._registry = registry
        self._engine = engine
        self._drain = drain
        self._checking = asyncio.Lock()
        self._good_at = float("-inf")

    async def check(self) -> None:
        """Raises Draining, or NotReady with the reason."""
        self._drain.check()
        if not self._registry.known:
            raise NotReady("the registry has not been reached yet")
        async with self._checking:
            if time.monotonic() - self._good_at < FRESH_S:
                return
            await self._run()
            self._good_at = time.monotonic()

    async def _run(self) -> None:
        steps = self._steps()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._engine.check_ready()
        except Overloaded:
            return  # a full queue is being worked off: busy, not broken
        except TimeoutError:
            if self._steps() == steps:
                raise NotReady("the engine does not move") from None
        except Exception as error:
            raise NotReady("the engine failed its one-token run") from error

    def _steps(self) -> int:
        stats = self._engine.stats()
        return stats.steps_prefill + stats.steps_decode
