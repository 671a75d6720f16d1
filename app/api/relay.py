"""Runs an async generator in one task of its own and hands its items over.

A generator that holds a deadline or a cancel scope must be driven by one task from its first item to its last. A
response needs the first item before its head is sent and the rest after: two tasks. The relay stands between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

Item = TypeVar("Item")
_AHEAD = 8  # items waiting for a slow reader; then the generator waits too


class Relay(Generic[Item]):
    """An async iterator over `source`. `aclose` ends the generator, and with it the work behind it."""

    def __init__(self, source: AsyncGenerator[Item, None]) -> None:
        self._items: asyncio.Queue[Item | _End] = asyncio.Queue(_AHEAD)
        self._task = asyncio.create_task(self._run(source))

    def __aiter__(self) -> Relay[Item]:
        return self

    async def __anext__(self) -> Item:
        item = await self._items.get()
        if not isinstance(item, _End):
            return item
        self._items.put_nowait(item)  # every further call ends the same way
        if item.error is not None:
            raise item.error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if not self._task.done():
            self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self, source: AsyncGenerator[Item, None]) -> None:
        end = _End(None)
        try:
            async for item in source:
                await self._items.put(item)
        except Exception as error:
            end = _End(error)
        finally:
            await source.aclose()
        await self._items.put(end)


class _End:
    def __init__(self, error: Exception | None) -> None:
        self.error = error
