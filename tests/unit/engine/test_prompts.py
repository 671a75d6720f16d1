from __future__ import annotations

import pytest
import torch

from app.backbone.kv import PrefixKV
from app.engine.prompts import ResidentPrompts


def make_prompts(budget: int = 1000) -> ResidentPrompts:
    return ResidentPrompts(device=torch.device("cpu"), dtype=torch.float32, budget_bytes=budget)


def prefix(size_bytes: int) -> PrefixKV:
    half = torch.zeros(1, 1, size_bytes // 8)
    return PrefixKV(((half, half),))


def test_prefixes_beyond_the_budget_leave_oldest_first() -> None:
    prompts = make_prompts(budget=250)
    for name in ("a", "b"):
        prompts.keep_prefix(name, 3, prefix(100))
    assert prompts.prefix("a", 3) is not None  # touched: now newer than b
    prompts.keep_prefix("c", 3, prefix(100))
    assert prompts.prefix("b", 3) is None
    assert prompts.prefix("a", 3) is not None
    assert prompts.evictions == 1
    prompts.check_integrity()


def test_a_prefix_larger_than_the_budget_is_not_kept_and_evicts_nothing() -> None:
    prompts = make_prompts(budget=250)
    prompts.keep_prefix("a", 3, prefix(100))
    prompts.keep_prefix("huge", 3, prefix(400))
    assert prompts.prefix("a", 3) is not None
    assert prompts.prefix("huge", 3) is None


def test_prefixes_of_two_prompts_with_equal_length_are_kept_apart() -> None:
    prompts = make_prompts()
    prompts.keep_prefix("a", 3, prefix(100))
    assert prompts.prefix("b", 3) is None


def test_release_of_a_pinned_prompt_waits_for_its_requests() -> None:
    prompts = make_prompts()
    prompts.load("a", torch.zeros(2, 4))
    prompts.pin("a")
    prompts.release("a")
    assert "a" in prompts
    prompts.unpin("a")
    prompts.release("a")
    assert "a" not in prompts


def test_pin_of_an_unknown_prompt_raises() -> None:
    with pytest.raises(KeyError):
        make_prompts().pin("a")
