from __future__ import annotations

import re

from app.telemetry.ids import new_id


def test_names_have_their_prefix_and_all_their_digits() -> None:
    assert all(re.fullmatch("gen-[0-9a-f]{24}", new_id("gen-")) for _ in range(300))
    assert re.fullmatch("req_[0-9a-f]{32}", new_id("req_", bits=128))


def test_no_two_names_are_alike() -> None:
    assert len({new_id("r") for _ in range(20_000)}) == 20_000
