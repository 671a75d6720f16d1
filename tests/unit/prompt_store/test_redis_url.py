"""Addresses of one server go to redis-py as they are; those of Sentinels are taken apart."""

from __future__ import annotations

import pytest
import redis
import redis.sentinel

from prompt_store.redis_url import async_client_from_url, client_from_url


def test_address_of_one_server_is_redis_pys_own() -> None:
    with client_from_url("redis://user:pass@somewhere:7000/3", socket_timeout=2) as client:
        found = client.connection_pool.connection_kwargs
    assert (found["host"], found["port"], found["db"], found["username"]) == ("somewhere", 7000, 3, "user")
    assert found["socket_timeout"] == 2


@pytest.mark.parametrize("client_of", [client_from_url, async_client_from_url])
def test_address_of_sentinels_names_primary_account_and_database(client_of: object) -> None:
    url = "redis+sentinel://me:p%40ss@one,two:7001,[::1]:7002/chorus/2?sentinel_password=own"
    client = client_of(url, socket_timeout=2, decode_responses=True)  # type: ignore[operator]
    pool = client.connection_pool
    assert pool.service_name == "chorus"
    given = pool.connection_kwargs
    assert (given["username"], given["password"], given["db"]) == ("me", "p@ss", 2)
    assert (given["socket_timeout"], given["decode_responses"]) == (2, True)
    sentinels = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"]) for one in sentinels] == [("one", 26379), ("two", 7001), ("::1", 7002)]
    assert all((one["password"], one["socket_timeout"]) == ("own", 2) for one in sentinels)


def test_rediss_speaks_tls_to_the_servers() -> None:
    client = client_from_url("rediss+sentinel://one/chorus")
    pool = client.connection_pool
    assert issubclass(pool.connection_class, redis.sentinel.SentinelManagedSSLConnection)


@pytest.mark.parametrize(
    "url",
    ["redis+sentinel://one", "redis+sentinel:///chorus", "redis+sentinel://one/chorus/x", "redis+sentinel://:1/c"]
    + ["redis+sentinel://host/chorus?password=x"],
)
def test_address_of_sentinels_that_is_not_of_its_form_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"HOST|host|option"):
        client_from_url(url)
