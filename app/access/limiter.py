"""How much a key may ask for, counted in Redis for all replicas together.

While Redis is away each replica counts rates by itself: a key then gets at most its limit on each, which is neither no
limit nor no service. Jobs need Redis anyway: without it they are refused by their own store.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.access.buckets import SPEND, LocalBuckets
from app.access.keys import Caller
from app.errors import StoreDown
from prompt_store.redis_url import async_client_from_url

log = logging.getLogger(__name__)
TIMEOUT_S = 0.25
AWAY_S = 2.0
"""How long a replica counts by itself before it asks Redis again."""
PLACE_S = 120
"""How long a job may take from its request to its record, before its place is given to another."""

# A token that is among the places is counted among the jobs ever, too; both scripts keep that so.
# KEYS: 1 places, a sorted set: job id or token -> when taken  2 jobs ever  3 ids of jobs that have not ended
# ARGV: 1 token  2 most at one time  3 most ever (-1: no limit)  4 seconds that a place without a job is held
_TAKE = """
local now = tonumber(redis.call('TIME')[1])
local held = 0
for _, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local waits = string.sub(name, 1, 1) == '?'
  local fresh = tonumber(redis.call('ZSCORE', KEYS[1], name)) + tonumber(ARGV[4]) > now
  if (waits and fresh) or (not waits and redis.call('SISMEMBER', KEYS[3], name) == 1) then
    held = held + 1
  else
    redis.call('ZREM', KEYS[1], name)
    if waits then redis.call('DECR', KEYS[2]) end  -- whoever held it died before there was a job
  end
end
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 'shared' end
if tonumber(ARGV[2]) >= 0 and held >= tonumber(ARGV[2]) then return 'concurrent' end
if tonumber(ARGV[3]) >= 0 and tonumber(redis.call('GET', KEYS[2]) or '0') >= tonumber(ARGV[3]) then return 'total' end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('INCR', KEYS[2])
return 'taken'
"""

# KEYS: as above.  ARGV: 1 token  2 job id, '' when there is none.  A job that was there before takes no second place;
# a new one takes its place also where the token was given back meanwhile, by another who shared it.
_SETTLE = """
local held = redis.call('ZREM', KEYS[1], ARGV[1]) == 1
if ARGV[2] == '' then return held and redis.call('DECR', KEYS[2]) or 0 end
if not held then redis.call('INCR', KEYS[2]) end
return redis.call('ZADD', KEYS[1], tonumber(redis.call('TIME')[1]), ARGV[2])
"""


@dataclass(frozen=True)
class Refusal:
    """What ran out, and for how many seconds; None where waiting alone does not help."""

    what: Literal["rate", "concurrent", "total"]
    wait_s: float | None = None


class Limiter:
    """One for each replica, used on its event loop."""

    def __init__(self, redis_url: str | None, *, live_jobs: str) -> None:
        """`live_jobs`: the Redis set of the ids of jobs that have not ended."""
        self._live_jobs = live_jobs
        self._client = None if redis_url is None else _connect(redis_url)
        self._local = LocalBuckets()
        self._away_until = 0.0

    async def admit(self, caller: Caller) -> Refusal | None:
        """Take one request of a key's rate; None when it may go on."""
        wait_s = await self._spend(caller, None)
        return Refusal("rate", wait_s) if wait_s else None

    async def charge(self, caller: Caller, tokens: int) -> None:
        """Take tokens that were spent."""
        if tokens and caller.limits.tokens_per_minute is not None:
            await self._spend(caller, tokens)

    @asynccontextmanager
    async def place_for_job(self, caller: Caller, submission: str | None = None) -> AsyncIterator[JobPlace]:
        """A place for one job, given back unless `JobPlace.keep` was called with the id of a new one.

        All who hold a place for the same `submission` (an idempotency key) at once share one, on any replica.
        Raises StoreDown when Redis does not answer.
        """
        place = JobPlace()
        if self._client is None or not caller.limits.any_jobs:
            yield place
            return
        keys, token = [*job_keys(caller.id), self._live_jobs], _token(submission)
        most = [-1 if limit is None else limit for limit in (caller.limits.concurrent_jobs, caller.limits.total_jobs)]
        taken = str(await self._run(_TAKE, keys, [token, *most, PLACE_S]))
        if taken not in ("taken", "shared"):
            place.refusal = Refusal(cast(Literal["concurrent", "total"], taken))
            yield place
            return
        try:
            yield place
        finally:
            if taken == "taken" or place.job_id:  # who shares a place does not give it back
                await self._run(_SETTLE, keys, [token, place.job_id])

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _spend(self, caller: Caller, tokens: int | None) -> float:
        """Seconds to wait, 0 when it may go on."""
        limits, now = caller.limits, time.monotonic()
        if not limits.any_rate:
            return 0.0
        most = (limits.requests_per_minute or 0, limits.tokens_per_minute or 0)
        if self._client is not None and now >= self._away_until:
            try:
                arguments = [*most, "" if tokens is None else tokens]
                return int(await self._client.eval(SPEND, 1, rate_key(caller.id), *arguments)) / 1000
            except (RedisError, OSError) as error:
                self._away_until = now + AWAY_S
                log.warning("limits are counted by this replica alone", extra={"why": type(error).__name__})
        return self._local.spend(caller.id, *most, tokens, now)

    async def _run(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        assert self._client is not None
        try:
            return await self._client.eval(script, len(keys), *keys, *arguments)
        except RedisError as error:
            raise StoreDown("jobs are out of reach: Redis does not answer") from error


class JobPlace:
    """`refusal` says why there is none."""

    def __init__(self) -> None:
        self.refusal: Refusal | None = None
        self.job_id = ""

    def keep(self, job_id: str) -> None:
        self.job_id = job_id


def rate_key(key_id: str) -> str:
    """Hash: the key's buckets."""
    return f"chorus:limits:{key_id}"


def job_keys(key_id: str) -> list[str]:
    """Sorted set: places of the key's jobs. String: how many it ever had."""
    return [f"chorus:limits:{key_id}:jobs", f"chorus:limits:{key_id}:jobs-ever"]


def _token(submission: str | None) -> str:
    return f"?{secrets.token_hex(8) if submission is None else hashlib.sha256(submission.encode()).hexdigest()}"


def _connect(url: str) -> redis.asyncio.Redis:
    return async_client_from_url(
        url,
        decode_responses=True,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
