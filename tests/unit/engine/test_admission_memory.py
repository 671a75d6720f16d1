"""Golden outputs are replayed once for each digest, and what remembers it does not grow for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.backbone import Backbone
from tests.engines import serving
from tests.prompts import TEMPLATES, make_prompt

pytestmark = pytest.mark.anyio


async def test_admit_replays_a_digest_once_until_it_is_forgotten(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed: list[str] = []

    async def check(prompt, *_, **__) -> None:
        replayed.append(prompt.digest)

    monkeypatch.setattr("app.engine.service.check_golden", check)
    monkeypatch.setattr("app.engine.service._MAX_ADMITTED", 2)
    prompt = make_prompt(llama, TEMPLATES[0])
    async with serving(llama) as service:
        for digest in "1", "2", "1", "2", "3", "2", "3", "1":
            await service.admit(replace(prompt, digest=digest * 64))
    assert [digest[0] for digest in replayed] == ["1", "2", "3", "1"]
