"""More than can be answered: what is taken is answered whole, the rest is refused with a time to come back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.architectures import build_backbone
from tests.live import HANG_S, serving
from tests.real_world import make_real_world

ROWS, QUEUED, CLIENTS, EACH = 4, 8, 120, 2
TOKENS = 100


@pytest.mark.anyio
async def test_overload_is_refused_with_a_time_to_come_back_and_what_is_taken_is_answered(
    tmp_path: Path, redis_url: str, record_property: Callable[[str, object], None]
) -> None:
    limits = {"max_rows": ROWS, "max_queued_rows": QUEUED, "max_context": 160}
    world = make_real_world(tmp_path, redis_url, build_backbone("llama"), **limits)
    world.publish("tale", "<prompt:5>{text}")
    with serving(world.app) as live:
        pool = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=live.url, timeout=HANG_S, limits=pool) as client:

            async def ask(number: int) -> httpx.Response:
                body = {"input": f"once upon {number}", "max_tokens": TOKENS}
                return await client.post("/v1/tasks/tale/generate", json=body)

            alone = {number: (await ask(number)).json()["outputs"][0]["text"] for number in range(3)}
            found: Counter[int] = Counter()
            for turn in range(EACH):
                answers = await asyncio.gather(*map(ask, range(CLIENTS)))
                found.update(answer.status_code for answer in answers)
                assert any(answer.status_code == 429 for answer in answers)
                check(answers, alone)
                after = await ask(turn % 3)
                assert after.status_code == 200
                assert after.json()["outputs"][0]["text"] == alone[turn % 3]
            health = (await client.get("/health")).json()
    assert set(found) == {200, 429}
    assert found[200] >= EACH * ROWS
    assert (health["status"], health["engine"]["num_requests_waiting"]) == ("ok", 0)
    record_property("tries", CLIENTS * EACH)


def check(answers: list[httpx.Response], alone: dict[int, str]) -> None:
    for number, answer in enumerate(answers):
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "overloaded"
        elif number in alone:
            assert answer.json()["outputs"][0]["text"] == alone[number]
