"""A map bounded by bytes that one long scan cannot empty of what is used again and again.

Segmented LRU (Karedla, Love and Wherry 1994): what is new is on probation; a second use protects it. Room is made by
dropping the longest unused on probation, and what is protected falls back to probation when it is least used there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
_PROTECTED = 0.8  # of the budget, at most


class SegmentedLRU(Generic[K, V]):
    """Values with their sizes in bytes, whose sum stays within `budget_bytes`. Not thread-safe."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.size_bytes = self.evictions = 0
        self._probation: OrderedDict[K, tuple[V, int]] = OrderedDict()  # oldest first, as the next
        self._protected: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._protected_bytes = 0

    def __len__(self) -> int:
        return len(self._probation) + len(self._protected)

    def __contains__(self, key: K) -> bool:
        return key in self._protected or key in self._probation

    def has_room(self, count: int) -> bool:
        """Whether so many more values of the usual size would push nothing out."""
        return self.size_bytes + count * self.size_bytes / max(1, len(self)) <= self.budget_bytes

    def get(self, key: K) -> V | None:
        """The value, which counts as a use; None when it is not here."""
        entry = self._protected.get(key)
        if entry is not None:
            self._protected.move_to_end(key)
            return entry[0]
        entry = self._probation.pop(key, None)
        if entry is None:
            return None
        self._protected[key] = entry
        self._protected_bytes += entry[1]
        while self._protected_bytes > _PROTECTED * self.budget_bytes:
            oldest, fallen = self._protected.popitem(last=False)
            self._protected_bytes -= fallen[1]
            self._probation[oldest] = fallen
        return entry[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        """Keep a value, on probation. One that alone exceeds the budget is not kept."""
        self.drop((key,))
        if size_bytes > self.budget_bytes:
            return
        while self.size_bytes + size_bytes > self.budget_bytes:
            self._evict()
        self._probation[key] = (value, size_bytes)
        self.size_bytes += size_bytes

    def drop(self, keys: Iterable[K]) -> list[V]:
        """The values that were held."""
        dropped = []
        for key in keys:
            if (entry := self._protected.pop(key, None)) is not None:
                self._protected_bytes -= entry[1]
            elif (entry := self._probation.pop(key, None)) is None:
                continue
            self.size_bytes -= entry[1]
            dropped.append(entry[0])
        return dropped

    def values(self) -> Iterable[V]:
        """All values, in no order."""
        return (value for part in (self._probation, self._protected) for value, _ in part.values())

    def by_use(self) -> list[K]:
        """All keys, those first that would be kept longest."""
        return [*reversed(self._protected), *reversed(self._probation)]

    def check_integrity(self) -> None:
        held = [size for part in (self._probation, self._protected) for _, size in part.values()]
        assert self.size_bytes == sum(held) <= self.budget_bytes
        assert self._protected_bytes == sum(size for _, size in self._protected.values())
        assert not self._probation.keys() & self._protected.keys()

    def _evict(self) -> None:
        part = self._probation or self._protected
        _, (_, size) = part.popitem(last=False)
        self.size_bytes -= size
        self._protected_bytes -= size if part is self._protected else 0
        self.evictions += 1
