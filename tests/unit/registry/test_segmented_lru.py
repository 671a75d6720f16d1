"""The host's tier of prompts: within its budget always, and not emptied by a scan."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from app.registry.segmented_lru import SegmentedLRU

KEYS = st.integers(0, 9)
MOVES = st.lists(st.tuples(st.sampled_from(["get", "put", "drop"]), KEYS, st.integers(1, 40)), max_size=80)


@given(MOVES)
def test_budget_holds_and_values_are_their_own_after_any_history(moves: list[tuple[str, int, int]]) -> None:
    cache: SegmentedLRU[int, tuple[int, int]] = SegmentedLRU(100)
    newest: dict[int, tuple[int, int]] = {}
    for move, key, size in moves:
        if move == "put":
            newest[key] = (key, size)
            cache.put(key, newest[key], size)
            assert key in cache
        elif move == "drop":
            cache.drop((key,))
            assert key not in cache
        else:
            found = cache.get(key)
            assert found is None or found == newest[key]
        cache.check_integrity()
        assert sorted(cache.by_use()) == sorted(key for key in range(10) if key in cache)


def test_scan_of_many_values_leaves_what_is_used_again() -> None:
    cache: SegmentedLRU[int, int] = SegmentedLRU(100)
    plain: OrderedDict[int, int] = OrderedDict()  # a plain LRU of the same size, for comparison
    for key in (1, 2, 3, 1, 2, 3, *range(1000, 2000)):
        if cache.get(key) is None:
            cache.put(key, key, 10)
        plain[key] = key
        plain.move_to_end(key)
        while len(plain) > 10:
            plain.popitem(last=False)
    assert all(key in cache for key in (1, 2, 3))
    assert not any(key in plain for key in (1, 2, 3))


def test_least_used_is_dropped_first() -> None:
    cache: SegmentedLRU[str, int] = SegmentedLRU(30)
    for key in "abc":
        cache.put(key, 0, 10)
    cache.get("a")
    cache.put("d", 0, 10)
    assert (cache.evictions, cache.by_use()) == (1, ["a", "d", "c"])


def test_what_is_no_longer_used_gives_way_though_it_was_protected() -> None:
    cache: SegmentedLRU[int, int] = SegmentedLRU(100)
    for key in range(10):
        cache.put(key, key, 10)
        cache.get(key)
    for key in range(10, 20):
        cache.put(key, key, 10)
        cache.get(key)
    assert len([key for key in range(10) if key in cache]) <= 2


def test_value_larger_than_the_budget_is_not_kept_and_pushes_nothing_out() -> None:
    cache: SegmentedLRU[str, int] = SegmentedLRU(30)
    cache.put("small", 0, 30)
    cache.put("large", 0, 31)
    assert ("small" in cache, "large" in cache, cache.evictions) == (True, False, 0)
