"""Clients from an address: one server, or whichever server a group of Sentinels says is the primary.

    redis://…  rediss://…  unix://…                                            as redis-py reads them
    redis+sentinel://[user:password@]host[:port][,host[:port]…]/NAME[/DB]      NAME: what the Sentinels call the primary

With `rediss+sentinel://` the servers are spoken to over TLS. User and password are those of the servers; Sentinels that
want a password of their own take it from the query: `?sentinel_password=…`. After a failover the next call asks the
Sentinels anew. Replication is asynchronous: a write that a replica never saw is gone when it becomes the primary, which
`PromptStore.behind` notices by the record files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel

SENTINEL_PORT = 26379
# redis-py leaves their arguments without types.
_SENTINEL: Any = redis.sentinel.Sentinel
_ASYNC_SENTINEL: Any = redis.asyncio.sentinel.Sentinel
_SCHEMES = {"redis+sentinel": False, "rediss+sentinel": True}  # whether the servers are spoken to over TLS


@dataclass(frozen=True)
class _Group:
    """The Sentinels, the primary's name, and what connections to either need."""

    sentinels: list[tuple[str, int]]
    name: str
    server: dict[str, Any]
    sentinel: dict[str, Any]


def client_from_url(url: str, **options: Any) -> redis.Redis:
    """A client; `options` are redis-py's for connections. Connects on first use. Raises ValueError for the address."""
    group = _group_of(url)
    if group is None:
        return redis.Redis.from_url(url, **options)
    sentinel = _SENTINEL(group.sentinels, sentinel_kwargs={**_timeouts(options), **group.sentinel}, **options)
    client: redis.Redis = sentinel.master_for(group.name, **group.server)
    return client


def async_client_from_url(url: str, **options: Any) -> redis.asyncio.Redis:
    """The same for asyncio."""
    group = _group_of(url)
    if group is None:
        return redis.asyncio.Redis.from_url(url, **options)
    sentinel = _ASYNC_SENTINEL(group.sentinels, sentinel_kwargs={**_timeouts(options), **group.sentinel}, **options)
    client: redis.asyncio.Redis = sentinel.master_for(group.name, **group.server)
    return client


def _group_of(url: str) -> _Group | None:
    """None for the address of one server."""
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        return None
    parts = urlsplit(f"//{rest}")
    account, _, hosts = parts.netloc.rpartition("@")
    name, _, database = parts.path.strip("/").partition("/")
    if not name or not hosts or (database and not database.isdigit()):
        raise ValueError(f"{scheme}:// wants HOST[:PORT][,HOST[:PORT]…]/NAME[/DB]")
    user, _, password = account.partition(":")
    server: dict[str, Any] = {"db": int(database or 0), "ssl": _SCHEMES[scheme]}
    server |= {key: unquote(value) for key, value in (("username", user), ("password", password)) if value}
    options = parse_qs(parts.query)
    own = options.pop("sentinel_password", None)
    if options:
        raise ValueError(f"{scheme}:// takes no option but sentinel_password")
    return _Group([_address(one) for one in hosts.split(",")], name, server, {"password": own[0]} if own else {})


def _address(text: str) -> tuple[str, int]:
    """`host`, `host:port`, `[::1]:port`."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is no host")
    return parts.hostname, parts.port or SENTINEL_PORT


def _timeouts(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in ("socket_timeout", "socket_connect_timeout")}
