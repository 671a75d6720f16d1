from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from app.backbone.kv import PrefixKV
from app.engine.cache import FrequencyCache
from app.engine.prompts import ResidentPrompts


def make_prompts(budget: int = 1000, *, vector_bytes: int = 10**6) -> ResidentPrompts:
    return ResidentPrompts(
        device=torch.device("cpu"), dtype=torch.float32, budget_bytes=budget, vector_bytes=vector_bytes
    )


IDS = (-1, -2, 5)


def prefix(size_bytes: int) -> Any:
    return SimpleNamespace(size_bytes=size_bytes)


def test_prefixes_beyond_the_budget_leave_oldest_first() -> None:
    prompts = make_prompts(budget=250)
    for name in ("a", "b"):
        prompts.keep_prefix(name, IDS, prefix(100))
    assert prompts.prefix("a", IDS) is not None  # touched: now newer than b
    assert prompts.prefix("c", IDS) is None
    prompts.keep_prefix("c", IDS, prefix(100))
    assert prompts.prefix("b", IDS) is None
    assert prompts.prefix("a", IDS) is not None
    assert prompts.evictions == 1
    prompts.check_integrity()


def test_prefix_larger_than_the_budget_is_not_kept_and_evicts_nothing() -> None:
    prompts = make_prompts(budget=250)
    prompts.keep_prefix("a", IDS, prefix(100))
    prompts.keep_prefix("huge", IDS, prefix(400))
    assert prompts.prefix("a", IDS) is not None
    assert prompts.prefix("huge", IDS) is None


def test_prefix_wanted_less_than_what_it_would_push_out_is_not_kept() -> None:
    prompts = make_prompts(budget=250)
    for name in ("a", "b"):
        prompts.keep_prefix(name, IDS, prefix(100))
        for _ in range(3):
            prompts.prefix(name, IDS)
    for i in range(50):  # a scan: each prompt is asked for once
        assert prompts.prefix(f"scan-{i}", IDS) is None
        assert not prompts.wants_prefix(f"scan-{i}", IDS)
        prompts.keep_prefix(f"scan-{i}", IDS, prefix(100))
    assert prompts.prefix("a", IDS) is not None
    assert prompts.prefix("b", IDS) is not None
    assert prompts.evictions == 0


def test_cache_of_500_of_10000_zipf_keys_comes_near_the_best_possible_hit_rate() -> None:
    generator = np.random.default_rng(0)
    weights = 1 / np.arange(1, 10_001)
    keys = generator.choice(10_000, size=40_000, p=weights / weights.sum()).tolist()
    cache: FrequencyCache[int, int] = FrequencyCache(500)
    hits = 0
    for place, key in enumerate(keys):
        hit = cache.get(key) is not None
        hits += hit and place >= 20_000
        if not hit:
            cache.put(key, key, 1)
    best = float((weights[:500] / weights.sum()).sum())  # 0.694; least recently used reaches 0.59
    assert hits / 20_000 > best - 0.05
    cache.check_integrity()


def test_cache_whose_favourites_change_takes_the_new_ones() -> None:
    cache: FrequencyCache[int, int] = FrequencyCache(10)
    for base in (0, 100):
        for i in range(5_000):
            key = base + i % 10
            if cache.get(key) is None:
                cache.put(key, key, 1)
    assert set(cache) == set(range(100, 110))


def test_prefixes_of_two_prompts_with_equal_ids_are_kept_apart() -> None:
    prompts = make_prompts()
    prompts.keep_prefix("a", IDS, prefix(100))
    assert prompts.prefix("b", IDS) is None


def test_prefixes_of_one_prompt_with_other_words_behind_it_are_kept_apart() -> None:
    prompts = make_prompts()
    prompts.keep_prefix("a", IDS, prefix(100))
    assert prompts.prefix("a", (*IDS[:2], 6)) is None
    prompts.keep_prefix("a", (*IDS[:2], 6), prefix(50))
    assert prompts.prefix_bytes == 150
    prompts.release("a")
    assert prompts.prefix_bytes == 0
    prompts.check_integrity()


def test_prefix_of_a_prompt_learned_as_keys_and_values_is_its_own_until_one_with_the_words_is_kept() -> None:
    prompts = make_prompts()
    learned = PrefixKV(torch.zeros(2, 1, 1, 2, 4))
    prompts.load("a", learned)
    assert prompts.prefix("a", IDS[:2]) is prompts.prefix("a", IDS) is prompts.learned("a")
    longer = PrefixKV(torch.zeros(2, 1, 1, 3, 4))
    prompts.keep_prefix("a", IDS, longer)
    assert prompts.prefix("a", IDS) is longer
    assert prompts.prefix("a", IDS[:2]) is prompts.learned("a")


def test_prefix_that_is_cached_already_is_not_wanted_twice() -> None:
    prompts = make_prompts()
    assert prompts.wants_prefix("a", IDS)
    prompts.keep_prefix("a", IDS, prefix(100))
    assert not prompts.wants_prefix("a", IDS)
    prompts.keep_prefix("a", IDS, prefix(100))
    assert prompts.prefix_bytes == 100


def test_vectors_beyond_their_budget_leave_oldest_first_but_never_while_pinned() -> None:
    vectors = torch.zeros(2, 4)  # 32 bytes
    prompts = make_prompts(vector_bytes=64)
    for name in ("a", "b"):
        prompts.load(name, vectors)
        prompts.pin(name)
    prompts.load("c", vectors)
    prompts.pin("c")
    assert all(name in prompts for name in "abc")  # all are needed: over the budget for now
    prompts.check_integrity()
    prompts.unpin("b")
    assert "b" not in prompts
    prompts.unpin("a")
    prompts.unpin("c")
    assert prompts.vector_bytes == 64
    prompts.load("d", vectors)
    assert [name in prompts for name in "acd"] == [False, True, True]
    prompts.check_integrity()


def test_release_of_a_pinned_prompt_waits_for_its_requests() -> None:
    prompts = make_prompts()
    prompts.load("a", torch.zeros(2, 4))
    prompts.pin("a")
    prompts.keep_prefix("a", IDS, prefix(100))
    prompts.release("a")
    assert "a" in prompts
    prompts.check_integrity()
    prompts.unpin("a")
    assert "a" not in prompts
    assert prompts.prefix_bytes == 0
    prompts.check_integrity()


def test_release_of_a_pinned_prompt_is_off_when_it_is_asked_for_again() -> None:
    prompts = make_prompts()
    prompts.load("a", torch.zeros(2, 4))
    prompts.pin("a")
    prompts.release("a")
    prompts.load("a", torch.zeros(2, 4))
    prompts.unpin("a")
    assert "a" in prompts
    prompts.check_integrity()


def test_prefix_that_rows_in_flight_need_is_not_pushed_out() -> None:
    prompts = make_prompts(budget=250)
    for name in ("a", "b"):
        prompts.load(name, torch.zeros(2, 4))
        prompts.keep_prefix(name, IDS, prefix(100))
    prompts.pin("a")
    for _ in range(3):
        prompts.prefix("c", IDS)
    prompts.keep_prefix("c", IDS, prefix(100))
    assert prompts.prefix("a", IDS) is not None
    assert prompts.prefix("b", IDS) is None
    prompts.pin("b")
    prompts.unpin("a")
    prompts.keep_prefix("huge", IDS, prefix(250))  # c and a would go, if it were wanted as often
    assert prompts.prefix("c", IDS) is not None
    prompts.check_integrity()


def test_pin_of_an_unknown_prompt_raises() -> None:
    with pytest.raises(KeyError):
        make_prompts().pin("a")
