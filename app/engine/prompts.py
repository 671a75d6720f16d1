"""Prompts resident in the engine: what they learned, on the device, and the keys and values of their leading part.

Both live within byte budgets, and what a request in flight needs is never dropped. A miss costs one prefill of the
prompt's own tokens, never a read from disk. Keys of the cache are a prompt's digest and the leading ids themselves: the
same words under two prompts have different keys and values, and so have other words under the same prompt.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

import torch
from torch import Tensor

from app.backbone.kv import PrefixKV
from app.backbone.soft_prompt import SoftPrompt, place, size_bytes, vectors_of
from app.engine.cache import FrequencyCache

PrefixKey = tuple[str, tuple[int, ...]]  # (digest, leading ids)


class ResidentPrompts:
    """Prompts by digest, least recently used dropped first; prefixes by (digest, ids), see `FrequencyCache`. `pins`
    counts the rows that need a digest."""

    def __init__(self, *, device: torch.device, dtype: torch.dtype, budget_bytes: int, vector_bytes: int) -> None:
        self._device, self._dtype, self._vector_budget = device, dtype, vector_bytes
        self._learned: OrderedDict[str, SoftPrompt] = OrderedDict()
        self.pins: Counter[str] = Counter()
        self._leaving: set[str] = set()  # released while a request still needed them
        self._prefixes: FrequencyCache[PrefixKey, PrefixKV] = FrequencyCache(
            budget_bytes, lambda key: key[0] in self.pins
        )
        self._begun: dict[str, set[tuple[int, ...]]] = {}  # the ids of each digest's cached prefixes
        self._bytes_per_token = 0.0
        self.vector_bytes = self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._learned)

    def __contains__(self, digest: str) -> bool:
        return digest in self._learned

    @property
    def prefix_bytes(self) -> int:
        return self._prefixes.size_bytes

    @property
    def evictions(self) -> int:
        return self._prefixes.evictions

    def load(self, digest: str, prompt: SoftPrompt) -> None:
        """Make a prompt resident in the serving dtype; a digest already there is only touched."""
        self._leaving.discard(digest)
        if digest not in self._learned:
            self._learned[digest] = resident = place(prompt, self._device, self._dtype)
            self.vector_bytes += size_bytes(resident)
            self._shrink(keep=digest)
        self._learned.move_to_end(digest)

    def release(self, digest: str) -> None:
        """Forget a prompt, as soon as no request needs it any more."""
        if digest in self.pins:
            self._leaving.add(digest)
            return
        self._leaving.discard(digest)
        self._drop(digest)
        for ids in self._begun.pop(digest, ()):
            self._prefixes.pop((digest, ids))

    def pin(self, digest: str) -> None:
        """Keep a prompt until `unpin`. Raises KeyError for one that is not resident."""
        if digest not in self._learned:
            raise KeyError(digest)
        self.pins[digest] += 1

    def unpin(self, digest: str) -> None:
        self.pins[digest] -= 1
        if self.pins[digest] <= 0:
            del self.pins[digest]
            if digest in self._leaving:
                self.release(digest)
            if self.vector_bytes > self._vector_budget:
                self._shrink()

    def learned(self, digest: str) -> SoftPrompt:
        return self._learned[digest]

    def vectors(self, digest: str) -> Tensor | None:
        """[P, H] at the template's slots, where the prompt has such vectors."""
        return vectors_of(self._learned[digest])

    def prefix(self, digest: str, ids: tuple[int, ...]) -> PrefixKV | None:
        """The cached keys and values of what a prompt's rows begin with, and a note that they were wanted. A prompt
        that was learned as keys and values always has its own; where `ids` go on, they may be all there is."""
        given = self._learned.get(digest)
        learned = given if isinstance(given, PrefixKV) else None
        if learned is not None and learned.length >= len(ids):
            return learned
        found = self._prefixes.get((digest, ids))
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return learned if found is None else found

    def wants_prefix(self, digest: str, ids: tuple[int, ...]) -> bool:
        """Whether `keep_prefix` would keep it; asked before it is copied out of a slot."""
        size = int(self._bytes_per_token * len(ids))
        return (digest, ids) not in self._prefixes and self._prefixes.admits((digest, ids), size)

    def keep_prefix(self, digest: str, ids: tuple[int, ...], prefix: PrefixKV) -> None:
        """Cache keys and values, if there is room or others are wanted less often."""
        self._bytes_per_token = prefix.size_bytes / len(ids)
        if self._prefixes.put((digest, ids), prefix, prefix.size_bytes):
            self._begun.setdefault(digest, set()).add(ids)
        for gone, of in self._prefixes.take_evicted():
            self._begun[gone].discard(of)
            if not self._begun[gone]:
                del self._begun[gone]

    def check_integrity(self) -> None:
        self._prefixes.check_integrity()
        assert self.vector_bytes == sum(map(size_bytes, self._learned.values()))
        free = [digest for digest in self._learned if digest not in self.pins]
        assert self.vector_bytes <= self._vector_budget or len(free) <= 1  # one was just loaded, for a row to come
        assert self._leaving <= self.pins.keys()
        assert all(digest in self._learned and count > 0 for digest, count in self.pins.items())
        keys = {(digest, ids) for digest, begun in self._begun.items() for ids in begun}
        assert keys == set(self._prefixes)

    def _shrink(self, keep: str | None = None) -> None:
        """Drop prompts nobody needs now, oldest first, until the rest fits. Their prefixes stay."""
        for digest in list(self._learned):
            if self.vector_bytes <= self._vector_budget:
                return
            if digest != keep and digest not in self.pins:
                self._drop(digest)

    def _drop(self, digest: str) -> None:
        self.vector_bytes -= size_bytes(self._learned.pop(digest, None))
