"""What a replica knows of keys: all records in memory, looked at anew every second, kept while their place is away.

A request costs one HMAC and two comparisons, whether the key's id is known or not, and no round trip. A change is seen
within `REFRESH_S` and the time to read it. While Redis is away the last records stay: known keys open as before, expiry
still counts, and nothing can be made or revoked in a place that does not answer. A copy in the data folder lets a
replica start meanwhile. Where nobody has ever read the Redis of the settings, keys may have been made there: that is no
service without keys.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from app.access.file_store import private_folder, read_records, write_records
from app.access.keys import SCOPES, Caller, KeyRecord, digest_of, id_of, is_made_key, pepper_id
from app.access.pepper import Pepper
from app.access.places import key_stores, keyless_mark, pepper_of, redis_mark, saved_keys
from app.access.redis_store import RedisKeys
from app.access.store import KeyStore, KeysUnavailable
from app.settings import Settings
from prompt_store.durable import read_file, write_file

log = logging.getLogger(__name__)
REFRESH_S = 1.0
USE_GRAIN_S = 300.0
"""How coarsely the last use is kept: who reads the list learns no more of a caller's habits."""

SETTING_ID = "setting"
"""The id of the key that CHORUS_API_KEY holds: it has no record, and every scope."""

_NOBODY = KeyRecord(id="0" * 12, scopes=("generate",), digest="0" * 64, pepper="0" * 8, created_at=0.0, revoked_at=0.0)
_MAX_SAVED = 16 << 20


class Directory:
    """Thread-safe: readers see one whole set of records or the next."""

    def __init__(
        self,
        stores: Sequence[KeyStore],
        pepper: Pepper,
        *,
        setting: str | None = None,
        saved: Path | None = None,
        mark: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._stores, self._pepper, self._saved, self._mark, self._now = stores, pepper, saved, mark, now
        self._stamps: dict[str, str] = {}
        self._found: dict[str, Mapping[str, KeyRecord]] = {}
        self._away: set[str] = set()
        self._records: Mapping[str, KeyRecord] = {}
        self._ever = False
        self._unread = any(isinstance(store, RedisKeys) for store in stores)
        self._told = False  # what Redis holds, by itself, by the copy or by the mark
        self._used: dict[str, float] = {}
        self._unsaid: dict[str, float] = {}
        self._process_secret = secrets.token_bytes(32)
        self._hashing = self._process_secret  # until there is a pepper, so that the work is the same
        own = setting if setting is not None and not is_made_key(setting) else None
        self._setting = None if own is None else digest_of(own, self._process_secret)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """By the settings, after a first look. Raises KeysUnavailable for a file of keys that cannot be read."""
        directory = cls(
            key_stores(settings),
            pepper_of(settings),
            setting=settings.api_key,
            saved=saved_keys(settings),
            mark=redis_mark(settings),
        )
        directory.refresh(first=True)
        return directory

    @property
    def has_keys(self) -> bool:
        """Whether calls need a key: one is set, or any was ever made. Never turns back in a process's life."""
        return self._setting is not None or self._ever

    @property
    def unread(self) -> bool:
        """Whether keys may have been made that are not known here: Redis was never read, and there is no copy."""
        return self._unread

    def authenticate(self, key: str) -> Caller | None:
        """Whose key it is, None for one that opens nothing, whatever the reason; the work is the same for all."""
        now = self._now()
        record = self._records.get(id_of(key), _NOBODY)
        digest = digest_of(key, self._hashing)
        current = hmac.compare_digest(digest, record.digest)
        old = record.old
        before = hmac.compare_digest(digest, old.digest if old is not None else _NOBODY.digest)
        set_one = hmac.compare_digest(digest_of(key, self._process_secret), self._setting or _NOBODY.digest)
        if set_one and self._setting is not None:
            return Caller(SETTING_ID, frozenset(SCOPES))
        valid = current or (before and old is not None and now < old.until)
        if not valid or record.state(now) != "active":
            return None
        self._note_use(record.id, now)
        return Caller(record.id, frozenset(record.scopes), record.limits)

    def refresh(self, *, first: bool = False) -> None:
        """Look for changes; what cannot be read keeps what was known. With `first`, a bad file raises."""
        for store in self._stores:
            try:
                self._read(store)
                if store.name in self._away:
                    self._away.discard(store.name)
                    log.info("keys can be read again", extra={"place": store.name})
            except KeysUnavailable as error:
                if first and store.name == "file":
                    raise
                self._lose(store, str(error), first=first)
        records = {key_id: record for store in reversed(self._stores) for key_id, record in self._of(store).items()}
        if records != self._records or (records and self._hashing is self._process_secret):
            self._take_pepper(records)
            self._records = records
        self._ever = self._ever or bool(records) or (first and self._saved is not None and self._saved.exists())
        self._unread = self._unread and not self._told  # last: who reads meanwhile finds it locked, or the keys

    def close(self) -> None:
        for store in self._stores:
            store.close()

    def _read(self, store: KeyStore) -> None:
        stamp = store.stamp()  # before the records: a change in between is then read twice, not missed
        if self._stamps.get(store.name) != stamp:
            self._found[store.name] = store.load()
            self._stamps[store.name] = stamp
            if isinstance(store, RedisKeys):
                self._told = True
                self._save(self._found[store.name])
        if isinstance(store, RedisKeys) and self._unsaid:
            unsaid = self._unsaid.copy()
            store.note_use(unsaid)
            for key_id, at in unsaid.items():
                if self._unsaid.get(key_id) == at:
                    del self._unsaid[key_id]

    def _of(self, store: KeyStore) -> Mapping[str, KeyRecord]:
        return self._found.get(store.name, {})

    def _lose(self, store: KeyStore, why: str, *, first: bool) -> None:
        if store.name not in self._away:
            self._away.add(store.name)
            log.warning("keys cannot be read; what is known of them holds", extra={"place": store.name, "why": why})
        if first and isinstance(store, RedisKeys) and self._saved is not None:
            try:
                self._found[store.name] = read_records(read_file(self._saved, limit=_MAX_SAVED))
                self._told = True
            except FileNotFoundError:
                self._told = self._marked(keyless_mark(self._saved))
            except (OSError, KeysUnavailable) as error:
                log.warning("the copy of the keys cannot be read", extra={"why": type(error).__name__})

    def _marked(self, file: Path) -> bool:
        """Whether the mark is there, and of this Redis."""
        try:
            return file.read_text(encoding="utf-8") == self._mark
        except (OSError, ValueError):
            return False

    def _save(self, records: Mapping[str, KeyRecord]) -> None:
        if self._saved is None:
            return
        mark = keyless_mark(self._saved)
        try:
            private_folder(self._saved.parent)
            if records or self._saved.exists():
                mark.unlink(missing_ok=True)  # first: who is killed in between starts locked
                write_file(self._saved, write_records(records))
            elif not self._marked(mark):
                write_file(mark, self._mark.encode())
        except OSError as error:
            log.warning("the copy of the keys cannot be written", extra={"why": error.strerror})

    def _note_use(self, key_id: str, now: float) -> None:
        if now - self._used.get(key_id, 0.0) >= USE_GRAIN_S:
            self._used[key_id] = now
            self._unsaid[key_id] = now // USE_GRAIN_S * USE_GRAIN_S

    def _take_pepper(self, records: Mapping[str, KeyRecord]) -> None:
        try:
            pepper = self._pepper.read()
        except KeysUnavailable as error:
            log.warning("the pepper cannot be read: no made key opens anything", extra={"why": str(error)})
            return
        self._hashing = pepper or self._process_secret
        mine = None if pepper is None else pepper_id(pepper)
        others = sum(record.pepper != mine and record.revoked_at is None for record in records.values())
        if others:
            log.warning(
                "keys of another pepper open nothing here: set CHORUS_KEY_PEPPER, or share keys/pepper",
                extra={"keys": others},
            )
