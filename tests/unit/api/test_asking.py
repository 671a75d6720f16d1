"""What one request may have in the engine at a time, and how long it may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from app.api.asking import Places, ask_in_parts, time_left
from app.engine import Answer, Ask, Usage
from app.errors import DeadlineExceeded, Overloaded
from app.settings import Settings
from tests.fakes import fake_prompt

pytestmark = pytest.mark.anyio
SETTINGS = Settings(max_rows=2)  # eight places


class Gauge:
    """Counts the rows inside."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def work(self, places: Places, rows: int) -> None:
        async with places.hold(rows):
            self.now += rows
            self.most = max(self.most, self.now)
            await asyncio.sleep(0)
            self.now -= rows


async def test_places_bound_the_rows_at_work_whatever_the_sizes_of_groups() -> None:
    gauge, places = Gauge(), Places(SETTINGS)
    await asyncio.wait_for(asyncio.gather(*(gauge.work(places, 1 + n % 5) for n in range(60))), 5)
    assert 5 < gauge.most <= 8


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({}, 8),
        ({"max_queued_rows": 6}, 5),
        ({"max_queued_tokens": 3200, "max_context": 400}, 6),
        ({"max_queued_tokens": 10}, 2),
    ],
)
async def test_places_are_those_that_run_and_at_most_half_of_the_queue(limits: dict[str, int], most: int) -> None:
    gauge, places = Gauge(), Places(Settings(max_rows=2, **limits))  # type: ignore[arg-type]
    await asyncio.gather(*(gauge.work(places, 1) for _ in range(40)))
    assert gauge.most == most


async def test_group_larger_than_all_places_takes_them_all_and_runs() -> None:
    places, gauge = Places(SETTINGS), Gauge()
    await asyncio.wait_for(asyncio.gather(*(gauge.work(places, 16) for _ in range(3))), 5)
    assert gauge.most == 16  # one such group at a time


async def test_group_that_is_cancelled_while_it_collects_gives_back_what_it_has() -> None:
    places, gate = Places(SETTINGS), asyncio.Event()

    async def hold(rows: int) -> None:
        async with places.hold(rows):
            await gate.wait()

    first, second = asyncio.create_task(hold(6)), asyncio.create_task(hold(5))
    await asyncio.sleep(0.01)
    second.cancel()
    await asyncio.wait({second})
    third = asyncio.create_task(hold(2))
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.wait_for(asyncio.gather(first, third), 5)
    await asyncio.wait_for(hold(8), 5)


async def test_time_left_when_there_is_none_is_the_deadline_error() -> None:
    assert 4 < time_left(time.monotonic() + 5) <= 5
    with pytest.raises(DeadlineExceeded):
        time_left(time.monotonic() - 1)


async def test_parts_keep_the_order_and_a_part_refused_stands_in_the_place_of_each_of_its_rows() -> None:
    class Engine:
        async def answer_together(self, asks: Sequence[Ask], *, timeout_s: float, tenant: str) -> list[Any]:
            if asks[0].prompt.version == 4:
                raise Overloaded("full")
            return [Answer(str(ask.prompt.version), "stop", Usage(1, 1, 0)) for ask in asks]

    asks = [Ask(fake_prompt(number), {"text": "x"}, fake_prompt(number).decoding) for number in range(1, 9)]
    found = await ask_in_parts(
        Engine(),  # type: ignore[arg-type]
        asks,
        Places(SETTINGS),
        size=3,
        deadline=time.monotonic() + 5,
    )
    assert [one.text if isinstance(one, Answer) else type(one) for one in found] == [
        *("1", "2", "3", Overloaded, Overloaded, Overloaded, "7", "8")
    ]
