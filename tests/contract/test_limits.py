"""Limits: the arithmetic is the same in Redis and in a process, places for jobs come back, an outage is bridged."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import redis
import redis.asyncio

from app.access.buckets import SPEND, LocalBuckets
from app.access.keys import Caller, KeyLimits
from app.access.limiter import Limiter
from app.errors import StoreDown

LIVE = "test:live"
pytestmark = pytest.mark.anyio


def caller(**limits: int) -> Caller:
    return Caller("0123456789ab", frozenset({"train"}), KeyLimits(**limits))


@pytest.fixture
async def limiter(redis_url: str) -> AsyncIterator[Limiter]:
    made = Limiter(redis_url, live_jobs=LIVE)
    yield made
    await made.close()


@pytest.mark.parametrize(("requests", "tokens"), [(5, 0), (0, 100), (600, 1200), (1, 1)])
def test_script_and_process_decide_alike(redis_url: str, requests: int, tokens: int) -> None:
    local = LocalBuckets()
    steps: list[int | None] = [None, 30, None, None, 200, None, None, None, 0, None, None]
    with redis.Redis.from_url(redis_url) as client:
        for step in steps:
            reply = client.eval(SPEND, 1, "bucket", requests, tokens, "" if step is None else step)
            here = local.spend("bucket", requests, tokens, step, time.monotonic())
            assert int(reply) / 1000 == pytest.approx(here, abs=0.3), step  # type: ignore[arg-type]
        assert 60 < client.ttl("bucket") < 3600 * 24


def test_bucket_refills_evenly_and_never_above_a_minutes_worth() -> None:
    local = LocalBuckets()
    assert [local.spend("k", 2, 0, None, 0.0) for _ in range(3)] == [0, 0, 30]
    assert local.spend("k", 2, 0, None, 30.0) == 0
    assert local.spend("k", 2, 0, None, 45.0) == pytest.approx(15)
    assert [local.spend("k", 2, 0, None, 9999.0) for _ in range(3)] == [0, 0, 30]


def test_debt_of_tokens_is_waited_for_in_full() -> None:
    local = LocalBuckets()
    assert local.spend("k", 0, 60, None, 0.0) == 0
    local.spend("k", 0, 60, 180, 0.0)
    assert local.spend("k", 0, 60, None, 0.0) == pytest.approx(121)
    assert local.spend("k", 0, 60, None, 121.0) == 0


async def test_key_without_limits_asks_nobody() -> None:
    nowhere = Limiter("redis://127.0.0.1:1", live_jobs=LIVE)
    assert await nowhere.admit(caller()) is None
    async with nowhere.place_for_job(caller()) as place:
        assert place.refusal is None
    await nowhere.close()


async def test_place_is_given_back_unless_a_job_came_of_it(limiter: Limiter, redis_url: str) -> None:
    one = caller(concurrent_jobs=1, total_jobs=2)
    with pytest.raises(ValueError, match="bad rows"):
        async with limiter.place_for_job(one):
            raise ValueError("bad rows")
    async with limiter.place_for_job(one) as first:
        assert first.refusal is None
        async with limiter.place_for_job(one) as second:
            assert second.refusal is not None
            assert second.refusal.what == "concurrent"
        first.keep("job-1")
    with redis.Redis.from_url(redis_url) as client:
        client.sadd(LIVE, "job-1")
        async with limiter.place_for_job(one) as place:
            assert place.refusal is not None
        client.srem(LIVE, "job-1")
    async with limiter.place_for_job(one) as place:
        assert place.refusal is None
        place.keep("job-2")
    async with limiter.place_for_job(one) as place:
        assert place.refusal is not None
        assert place.refusal.what == "total"


async def test_place_of_a_replica_that_died_lapses(
    limiter: Limiter, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = caller(concurrent_jobs=1)
    with redis.Redis.from_url(redis_url) as client:
        client.zadd(f"chorus:limits:{one.id}:jobs", {"?dead": time.time() - 60})
        async with limiter.place_for_job(one) as place:
            assert place.refusal is not None
        monkeypatch.setattr("app.access.limiter.PLACE_S", 30)
        async with limiter.place_for_job(one) as place:
            assert place.refusal is None


async def test_one_submission_sent_many_times_shares_one_place(limiter: Limiter, redis_url: str) -> None:
    one = caller(concurrent_jobs=1, total_jobs=1)
    async with limiter.place_for_job(one, "same") as first:
        async with limiter.place_for_job(one, "other") as other:
            assert other.refusal is not None
        async with limiter.place_for_job(one, "same") as second:
            assert (first.refusal, second.refusal) == (None, None)
        async with limiter.place_for_job(one, "other") as other:
            assert other.refusal is not None, "who shares a place gives it back"
        first.keep("job-1")
    with redis.Redis.from_url(redis_url) as client:
        client.sadd(LIVE, "job-1")
        async with limiter.place_for_job(one, "same") as place:
            assert place.refusal is not None
        assert client.get(f"chorus:limits:{one.id}:jobs-ever") == b"1"


@pytest.mark.parametrize("who", ["owner", "sharer"])
async def test_job_of_a_shared_place_is_counted_once_whoever_made_it(
    limiter: Limiter, redis_url: str, who: str
) -> None:
    """The owner leaves first: it gives the place back where the sharer has made the job."""
    one = caller(concurrent_jobs=5, total_jobs=5)
    owner, sharer = limiter.place_for_job(one, "same"), limiter.place_for_job(one, "same")
    first, second = await owner.__aenter__(), await sharer.__aenter__()
    (first if who == "owner" else second).keep("job-1")
    await owner.__aexit__(None, None, None)
    await sharer.__aexit__(None, None, None)
    with redis.Redis.from_url(redis_url) as client:
        assert client.zrange(f"chorus:limits:{one.id}:jobs", 0, -1) == [b"job-1"]
        assert client.get(f"chorus:limits:{one.id}:jobs-ever") == b"1"


async def test_place_of_a_replica_that_died_is_not_a_job_of_the_keys_life(
    limiter: Limiter, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = caller(total_jobs=1)
    dead = limiter.place_for_job(one)
    await dead.__aenter__()
    async with limiter.place_for_job(one) as place:
        assert place.refusal is not None
    monkeypatch.setattr("app.access.limiter.PLACE_S", -1)
    async with limiter.place_for_job(one) as place:
        assert place.refusal is None
        place.keep("job-1")
    await dead.__aexit__(None, None, None)
    with redis.Redis.from_url(redis_url) as client:
        assert client.get(f"chorus:limits:{one.id}:jobs-ever") == b"1"


async def test_without_redis_rates_are_counted_here_and_jobs_refused() -> None:
    nowhere = Limiter("redis://127.0.0.1:1", live_jobs=LIVE)
    one = caller(requests_per_minute=2, concurrent_jobs=1)
    found = [await nowhere.admit(one) for _ in range(3)]
    assert [refusal is not None for refusal in found] == [False, False, True]
    with pytest.raises(StoreDown):
        async with nowhere.place_for_job(one):
            pass
    await nowhere.close()
