"""What a person does with keys: make, list, revoke, rotate. Over any number of places, told apart by a key's id."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from app.access.keys import NO_LIMITS, KeyLimits, KeyRecord, OldSecret, Scope, digest_of, mint, pepper_id
from app.access.pepper import Pepper
from app.access.store import KeyStore

_TRIES = 5


class KeyRefused(Exception):
    """It cannot be done with this key; the message says why."""


@dataclass(frozen=True)
class MadeKey:
    """`secret` is the whole key, shown once; only its record is kept."""

    secret: str
    record: KeyRecord
    place: str


class Keyring:
    """Every method raises KeysUnavailable."""

    def __init__(self, stores: Sequence[KeyStore], pepper: Pepper, *, now: Callable[[], float] = time.time) -> None:
        self._stores, self._pepper, self._now = stores, pepper, now

    def create(
        self,
        store: KeyStore,
        scopes: Sequence[Scope],
        *,
        name: str = "",
        lifetime_s: float | None = None,
        limits: KeyLimits | None = None,
    ) -> MadeKey:
        """A new key in `store`. Raises KeyRefused where the records there were made with another pepper."""
        pepper = self._pepper.make()
        self._check_pepper(store, pepper)
        secret, key_id = mint()
        now = self._now()
        record = KeyRecord(
            id=key_id,
            name=name,
            scopes=tuple(dict.fromkeys(scopes)),
            digest=digest_of(secret, pepper),
            pepper=pepper_id(pepper),
            created_at=now,
            expires_at=None if lifetime_s is None else now + lifetime_s,
            limits=limits or NO_LIMITS,
        )
        store.add(record)
        return MadeKey(secret, record, store.name)

    def list(self) -> Iterator[tuple[str, KeyRecord]]:
        """Place and record of every key, in the order of their making."""
        found = [(store.name, record) for store in self._stores for record in store.load().values()]
        return iter(sorted(found, key=lambda one: one[1].created_at))

    def revoke(self, key_id: str) -> KeyRecord:
        """From now on the key opens nothing, for ever. Revoking again changes nothing. Raises KeyRefused."""

        def revoked(record: KeyRecord) -> KeyRecord:
            if record.revoked_at is not None:
                return record
            return record.model_copy(update={"revoked_at": self._now(), "old": None})

        return self._change(key_id, revoked)[1]

    def rotate(self, key_id: str, *, overlap_s: float) -> MadeKey:
        """A new secret; the one before stays valid for `overlap_s` seconds, any older one ends. Raises KeyRefused."""
        pepper = self._pepper.make()
        secret, _ = mint(key_id)

        def rotated(record: KeyRecord) -> KeyRecord:
            now = self._now()
            if record.state(now) != "active":
                raise KeyRefused(f"the key {key_id} is {record.state(now)}: make a new one")
            if record.pepper != pepper_id(pepper):
                raise KeyRefused(_OTHER_PEPPER)
            old = OldSecret(digest=record.digest, until=now + overlap_s) if overlap_s > 0 else None
            return record.model_copy(update={"digest": digest_of(secret, pepper), "old": old})

        place, record = self._change(key_id, rotated)
        return MadeKey(secret, record, place)

    def _change(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> tuple[str, KeyRecord]:
        for _ in range(_TRIES):
            store, record = self._find(key_id)
            new = change(record)
            if new == record or store.replace(record, new):
                return store.name, new
        raise KeyRefused(f"others change the key {key_id} at the same time: try again")

    def _find(self, key_id: str) -> tuple[KeyStore, KeyRecord]:
        for store in self._stores:
            record = store.load().get(key_id)
            if record is not None:
                return store, record
        raise KeyRefused(f"no key {key_id}")

    def _check_pepper(self, store: KeyStore, pepper: bytes) -> None:
        others = [one for one in store.load().values() if one.revoked_at is None and one.pepper != pepper_id(pepper)]
        if others:
            raise KeyRefused(_OTHER_PEPPER)


_OTHER_PEPPER = "keys there were made with another pepper: set CHORUS_KEY_PEPPER, or share the folder's keys/pepper"
