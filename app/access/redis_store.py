"""Keys in the Redis of the registry: for replicas that share one, and changed from anywhere that reaches it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
from pydantic import ValidationError
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.access.keys import KeyRecord
from app.access.store import MAX_KEYS, KeysUnavailable
from prompt_store.redis_url import client_from_url

RECORDS = "chorus:keys"  # hash: key id -> record, JSON
STAMP = "chorus:keys:stamp"  # string: another one after each change; random, so that no lost and rebuilt one is equal
USED = "chorus:keys:used"  # hash: key id -> when it was last used, seconds, coarse
TIMEOUT_S = 1.0

# KEYS: 1 records  2 stamp.  ARGV: 1 id  2 record as it must be ('' for none)  3 new record  4 new stamp  5 most records
_PUT = """
local found = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if found ~= ARGV[2] then return 'changed' end
if ARGV[2] == '' and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5]) then return 'full' end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('SET', KEYS[2], ARGV[4])
return 'done'
"""


class RedisKeys:
    """Implements `KeyStore`. Thread-safe; connects on first use; waits a second at most."""

    name = "redis"

    def __init__(self, url: str) -> None:
        self._client = client_from_url(
            url,
            decode_responses=True,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),
        )
        self._put = self._client.register_script(_PUT)

    def stamp(self) -> str:
        with _unavailable():
            return str(self._client.get(STAMP) or "")

    def load(self) -> Mapping[str, KeyRecord]:
        with _unavailable():
            found: Any = self._client.hgetall(RECORDS)
        try:
            return {key_id: KeyRecord.model_validate_json(text) for key_id, text in found.items()}
        except ValidationError as error:
            raise KeysUnavailable("Redis holds a record of a key that is damaged") from error

    def add(self, record: KeyRecord) -> None:
        done = self._change(record.id, "", record)
        if done == "full":
            raise KeysUnavailable(f"there are {MAX_KEYS} keys already")
        if done != "done":
            raise KeysUnavailable("a key of this id exists already")

    def replace(self, old: KeyRecord, new: KeyRecord) -> bool:
        return self._change(old.id, _text(old), new) == "done"

    def note_use(self, times: Mapping[str, float]) -> None:
        """When keys were last used, seconds since 1970."""
        if times:
            with _unavailable():
                self._client.hset(USED, mapping={key_id: f"{at:.0f}" for key_id, at in times.items()})

    def last_used(self) -> dict[str, float]:
        with _unavailable():
            found: Any = self._client.hgetall(USED)
        return {key_id: float(at) for key_id, at in found.items()}

    def close(self) -> None:
        self._client.close()

    def _change(self, key_id: str, old: str, new: KeyRecord) -> str:
        arguments: list[str | int] = [key_id, old, _text(new), secrets.token_hex(8), MAX_KEYS]
        with _unavailable():
            return str(self._put(keys=[RECORDS, STAMP], args=arguments))


def _text(record: KeyRecord) -> str:
    """Fields at their defaults are left out: a record that was written before a field existed compares equal."""
    return record.model_dump_json(exclude_defaults=True)


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:  # without its text, which may hold an address
        raise KeysUnavailable(f"Redis does not answer ({type(error).__name__})") from error
