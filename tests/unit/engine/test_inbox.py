"""Who is woken by which event of a row."""

from __future__ import annotations

import asyncio

import pytest

from app.engine.flights import Inbox
from app.engine.types import Event

pytestmark = pytest.mark.anyio
EVENTS = [Event("r", token=1), Event("r", token=2), Event("r", finish="stop")]


async def read(inbox: Inbox, taken: list[Event]) -> None:
    while not taken or taken[-1].finish is None:
        taken.append(await inbox.get())


@pytest.mark.parametrize(("patient", "seen"), [(False, [1, 2, 3]), (True, [0, 0, 3])])
async def test_patient_reader_is_woken_by_the_last_event_alone(patient: bool, seen: list[int]) -> None:
    inbox, taken, counts = Inbox(), list[Event](), list[int]()
    inbox.patient = patient
    reader = asyncio.create_task(read(inbox, taken))
    for event in EVENTS:
        await asyncio.sleep(0)
        inbox.put_nowait(event)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        counts.append(len(taken))
    await reader
    assert counts == seen
    assert taken == EVENTS


@pytest.mark.parametrize("patient", [False, True])
async def test_events_that_came_before_their_reader_are_read_at_once(patient: bool) -> None:
    inbox, taken = Inbox(), list[Event]()
    inbox.patient = patient
    for event in EVENTS:
        inbox.put_nowait(event)
    await read(inbox, taken)
    assert taken == EVENTS


async def test_event_after_its_reader_was_cancelled_is_kept() -> None:
    inbox = Inbox()
    reader = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait([reader])
    inbox.put_nowait(EVENTS[0])
    assert await inbox.get() == EVENTS[0]
