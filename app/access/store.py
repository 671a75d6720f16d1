"""What a place for keys does, and how it fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from app.access.keys import KeyRecord

MAX_KEYS = 10_000


class KeysUnavailable(Exception):
    """A place for keys cannot be read or written now, or holds what is no record. The message holds no address."""


class KeyStore(Protocol):
    """Records by id. Every method raises KeysUnavailable."""

    @property
    def name(self) -> str:
        """`file` or `redis`."""
        ...

    def stamp(self) -> str:
        """Differs from before whenever a record was added or changed; cheap, asked for every second."""
        ...

    def load(self) -> Mapping[str, KeyRecord]: ...

    def add(self, record: KeyRecord) -> None: ...

    def replace(self, old: KeyRecord, new: KeyRecord) -> bool:
        """Put `new` in the place of `old`; False, and nothing done, when the record is no longer `old`."""
        ...

    def close(self) -> None: ...
