"""Deadlines are on the monotonic clock: a wall clock that is set ends nothing."""

from __future__ import annotations

import time

import pytest

from app.backbone import Backbone
from prompt_store.models import Decoding
from tests.engines import serving
from tests.prompts import TEMPLATES, make_prompt


@pytest.mark.anyio
@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
async def test_wall_clock_that_jumps_ends_no_request(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    prompt, wall = make_prompt(llama, TEMPLATES[0]), time.time
    async with serving(llama) as service:
        stream = service.stream(prompt, {"text": "a"}, decoding=Decoding(max_tokens=40), timeout_s=60)
        events = [await anext(stream)]
        monkeypatch.setattr(time, "time", lambda: wall() + jump_s)
        events += [event async for event in stream]
        assert events[-1].finish_reason in ("stop", "length")
        answer = await service.answer(prompt, {"text": "a"}, decoding=Decoding(max_tokens=40), timeout_s=60)
        assert answer.finish_reason == events[-1].finish_reason
