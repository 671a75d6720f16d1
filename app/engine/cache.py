"""A cache with a byte budget that a scan cannot empty: least recently used goes first, but a newcomer must be wanted at
least as often as what it would push out (TinyLFU: Einziger, Friedman and Manes 2017, with exact counts instead of a
sketch; keys are few). What stood up to a newcomer gets a second chance behind all others, so that the next newcomer
meets another one. Counts are halved from time to time, so that yesterday's favourites leave.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_MEMORY = 32  # lookups per cached item after which counts are halved
_LEAST_MEMORY = 4096


class FrequencyCache(Generic[K, V]):
    """Values by key. `size_bytes` never exceeds `budget_bytes`. A key that is `pinned` is not pushed out."""

    def __init__(self, budget_bytes: int, pinned: Callable[[K], bool] = lambda _: False) -> None:
        self.budget_bytes, self._pinned = budget_bytes, pinned
        self.size_bytes = self.evictions = 0
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._wanted: Counter[K] = Counter()
        self._lookups = 0
        self._evicted: list[K] = []

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: K) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def get(self, key: K) -> V | None:
        """The value, now the most recently used; None counts as wanted too."""
        self._wanted[key] += 1
        self._lookups += 1
        if self._lookups > max(_LEAST_MEMORY, _MEMORY * len(self._items)):
            self._age()
        found = self._items.get(key)
        if found is None:
            return None
        self._items.move_to_end(key)
        return found[0]

    def admits(self, key: K, size: int) -> bool:
        """Whether `put` would keep a value of `size` bytes. The one that stands in its way gets its second chance."""
        return self._victims(key, size) is not None

    def put(self, key: K, value: V, size: int) -> bool:
        """Keep a value, unless it is there, exceeds the budget, or would push out what is wanted more often."""
        victims = None if key in self._items else self._victims(key, size)
        if victims is None:
            return False
        for victim in victims:
            self.pop(victim)
            self.evictions += 1
        self._evicted += victims
        self._items[key] = (value, size)
        self.size_bytes += size
        return True

    def pop(self, key: K) -> None:
        """Forget a value; its count stays."""
        found = self._items.pop(key, None)
        self.size_bytes -= 0 if found is None else found[1]

    def take_evicted(self) -> list[K]:
        """Keys that were pushed out since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def check_integrity(self) -> None:
        assert self.size_bytes == sum(size for _, size in self._items.values()) <= self.budget_bytes

    def _victims(self, key: K, size: int) -> list[K] | None:
        """What has to go for it; None if that is wanted more often, or pinned."""
        if size > self.budget_bytes:
            return None
        victims: list[K] = []
        free = self.budget_bytes - self.size_bytes
        for victim, (_, freed) in self._items.items():
            if free >= size:
                break
            if self._pinned(victim):
                continue
            if self._wanted[victim] > self._wanted[key]:
                self._items.move_to_end(victim)
                return None
            victims.append(victim)
            free += freed
        return victims if free >= size else None

    def _age(self) -> None:
        self._lookups //= 2
        self._wanted = Counter({key: count // 2 for key, count in self._wanted.items() if count > 1})
